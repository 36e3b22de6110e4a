"""Prior sparse accelerators on the cost tables, memories, node and clock of ours, and what their papers print."""

from mvq.accel.rivals.machines import RIVALS
from mvq.accel.rivals.model import Rival, RivalRun, Sparsity, Work, run_rival
from mvq.accel.rivals.quoted import QUOTED, Quoted

__all__ = ["QUOTED", "RIVALS", "Quoted", "Rival", "RivalRun", "Sparsity", "Work", "run_rival"]
