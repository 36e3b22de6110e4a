"""Benchmarks: every figure of the documentation comes from one of these commands."""
