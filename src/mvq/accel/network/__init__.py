"""Integer networks: int8 activations and weights, int32 psums, fixed-point requantization.

Normative text of the arithmetic: `docs/spec/integer-network.md`. Everything but `from_torch` runs without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mvq.accel.network.arithmetic import Requantization, conv2d_int, fixed_point, linear_int, max_pool, pool_sums
from mvq.accel.network.execute import compute
from mvq.accel.network.export import to_onnx, write_onnx
from mvq.accel.network.graph import NODES, IntegerNetwork, Node, TensorSpec
from mvq.accel.network.storage import load, save

if TYPE_CHECKING:
    from mvq.accel.network.lowering import from_torch

__all__ = [
    "NODES",
    "IntegerNetwork",
    "Node",
    "Requantization",
    "TensorSpec",
    "compute",
    "conv2d_int",
    "fixed_point",
    "from_torch",
    "linear_int",
    "load",
    "max_pool",
    "pool_sums",
    "save",
    "to_onnx",
    "write_onnx",
]


def __getattr__(name: str) -> Any:
    if name == "from_torch":
        from mvq.accel.network.lowering import from_torch

        return from_torch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
