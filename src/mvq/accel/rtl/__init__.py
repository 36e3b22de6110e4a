"""The machine in RTL, from the same specification as its models."""
