"""The cycle view: how long a layer takes, and what every component does meanwhile."""

from mvq.accel.cycle.model import Cycles, layer_cycles, pipeline_depth

__all__ = ["Cycles", "layer_cycles", "pipeline_depth"]
