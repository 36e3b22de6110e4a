"""The functional view: what the machine computes, in its order, from the words it loads."""

from mvq.accel.functional.array import LayerResult, run_layer
from mvq.accel.functional.loader import decode
from mvq.accel.functional.run import Machine, run_images
from mvq.accel.functional.words import StoredWeight, load_order, pack, stored_weight, unpack

__all__ = [
    "LayerResult",
    "Machine",
    "StoredWeight",
    "decode",
    "load_order",
    "pack",
    "run_images",
    "run_layer",
    "stored_weight",
    "unpack",
]
