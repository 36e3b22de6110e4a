"""The cycle view: how long a layer takes, and what every component does meanwhile."""

from mvq.accel.cycle.actions import Actions, layer_actions
from mvq.accel.cycle.loads import loaded_bytes, stored_bytes
from mvq.accel.cycle.model import Cycles, layer_cycles, pipeline_depth
from mvq.accel.cycle.network import OBJECTIVES, LayerRun, NetworkRun, Objective, best_mapping, dram_traffic, run_network

__all__ = [
    "OBJECTIVES",
    "Actions",
    "Cycles",
    "LayerRun",
    "NetworkRun",
    "Objective",
    "best_mapping",
    "dram_traffic",
    "layer_actions",
    "layer_cycles",
    "loaded_bytes",
    "pipeline_depth",
    "run_network",
    "stored_bytes",
]
