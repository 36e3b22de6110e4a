"""The cycle view: how long a layer takes, and what every component does meanwhile."""

from mvq.accel.cycle.actions import Actions, layer_actions, stored_bytes
from mvq.accel.cycle.model import Cycles, layer_cycles, pipeline_depth

__all__ = ["Actions", "Cycles", "layer_actions", "layer_cycles", "pipeline_depth", "stored_bytes"]
