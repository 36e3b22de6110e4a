"""Prior sparse accelerators on equal terms: the memories, clock, DRAM and cost table of the machine compared with.

`RIVALS` are analytical models of SparTen, CGNet, SPOTS and S2TA; `QUOTED` is what papers print.
`docs/rivals-hardware.md` lists what is assumed.
"""

from mvq.accel.rivals.cgnet import ChannelGating
from mvq.accel.rivals.common import Rival
from mvq.accel.rivals.quoted import QUOTED, Quoted
from mvq.accel.rivals.running import RIVALS, LayerWork, RivalRun, run_rival, with_parts
from mvq.accel.rivals.s2ta import DensityBounds
from mvq.accel.rivals.sparsity import Sparsity
from mvq.accel.rivals.sparten import RandomSparsity
from mvq.accel.rivals.spots import GroupSparsity

__all__ = [
    "QUOTED",
    "RIVALS",
    "ChannelGating",
    "DensityBounds",
    "GroupSparsity",
    "LayerWork",
    "Quoted",
    "RandomSparsity",
    "Rival",
    "RivalRun",
    "Sparsity",
    "run_rival",
    "with_parts",
]
