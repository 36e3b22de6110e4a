"""The cost view: energy from counted actions and tables of cited or measured numbers."""

from mvq.accel.cost.energy import Bill, Entry, energy
from mvq.accel.cost.table import CostTable, Row

__all__ = ["Bill", "CostTable", "Entry", "Row", "energy"]
