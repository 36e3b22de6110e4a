"""N:M pruning masks from weights."""

from mvq.prune.magnitude import complete_mask, magnitude_mask, weight_mask

__all__ = ["complete_mask", "magnitude_mask", "weight_mask"]
