"""The cost view: energy from counted actions, area from counted parts, and tables of cited or measured numbers."""

from mvq.accel.cost.area import Area, AreaEntry, area
from mvq.accel.cost.energy import Bill, Entry, energy
from mvq.accel.cost.table import CostTable, Row

__all__ = ["Area", "AreaEntry", "Bill", "CostTable", "Entry", "Row", "area", "energy"]
