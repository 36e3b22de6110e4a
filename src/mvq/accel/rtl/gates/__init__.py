"""The RTL as gates: mapped netlists, their delays, and the energy that a run of them takes."""
