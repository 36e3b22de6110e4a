"""An integer network as plain, frozen data: tensors, and operations in the order they run.

Shapes leave the batch axis out. The result of an operation has the operation's name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mvq.accel.network.arithmetic import HIGH, LOW, MANTISSA_BITS, MAX_SHIFT, Padding, Pair, Requantization
from mvq.compressed import CompressedModel, DenseLayer, Int8Layer, VQLayer
from mvq.errors import ModelError, ShapeError

DType = Literal["int8", "int32", "float32"]


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor.

    Attributes:
        shape: without the batch axis.
        dtype: int8 codes, int32 sums of a layer that is not requantized, float32 values on the way out.
        scale: real value of one step of an int8 tensor; 1 for the others.
    """

    shape: tuple[int, ...]
    dtype: DType = "int8"
    scale: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation.

    Attributes:
        name: of the operation and of its result.
        inputs: names of what it reads.
    """

    kind: ClassVar[str] = ""
    name: str
    inputs: tuple[str, ...]


def _check_range(node: Add | Clamp) -> None:
    if not LOW <= node.low <= node.high <= HIGH:
        raise ShapeError(f"operation {node.name!r}: {node.low}..{node.high} is not a range within {LOW}..{HIGH}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Node):
    """Convolution; bias int32 `(K, 1, 1)`. Without requantization the result is `psum + bias`, int32."""

    kind = "conv"
    layer: str
    bias: NDArray[np.int32]
    requantization: Requantization | None
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """Fully connected layer on `(C,)`; bias int32 `(K,)`. Without requantization the result is int32."""

    kind = "linear"
    layer: str
    bias: NDArray[np.int32]
    requantization: Requantization | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Node):
    """Batch norm without a convolution to fold into: `requantize(AFFINE_CODE * x + bias)`, bias int32 by channel."""

    kind = "affine"
    bias: NDArray[np.int32]
    requantization: Requantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """Sum of two tensors, broadcast: `clamp(round((a * mantissas[0] + b * mantissas[1]) / 2**shift))`."""

    kind = "add"
    mantissas: Pair
    shift: int
    low: int = LOW
    high: int = HIGH

    def __post_init__(self) -> None:
        whole = all(type(n) is int for n in (*self.mantissas, self.shift)) and len(self.mantissas) == 2
        if not whole or max(map(abs, self.mantissas)) > 1 << MANTISSA_BITS or not 0 <= self.shift <= MAX_SHIFT:
            raise ShapeError(
                f"operation {self.name!r}: mantissas {self.mantissas} with shift {self.shift}; expected two integers "
                f"up to 2**{MANTISSA_BITS} and a shift of 0 to {MAX_SHIFT}"
            )
        _check_range(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Node):
    """Product of two tensors, broadcast, requantized."""

    kind = "multiply"
    requantization: Requantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Rescale(Node):
    """A tensor at another scale."""

    kind = "rescale"
    requantization: Requantization


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(Node):
    """ReLU and the like: values kept within `low` and `high`."""

    kind = "clamp"
    low: int
    high: int

    def __post_init__(self) -> None:
        _check_range(self)


@dataclass(frozen=True, eq=False, kw_only=True)
class Lookup(Node):
    """A function of one value: `table[x + 128]`. The table is int8, or float32 where the result leaves the network."""

    kind = "lookup"
    table: NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest value under a window."""

    kind = "max_pool"
    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Node):
    """Sum under a window, requantized; what it divides by is in the multiplier. Without requantization int32."""

    kind = "average_pool"
    kernel: Pair
    stride: Pair
    requantization: Requantization | None
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """Tensors of one scale side by side; `axis` counts the batch axis as 0."""

    kind = "concat"
    axis: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Pad(Node):
    """Zeros around a tensor: `(before, after)` for each axis but the batch; negative numbers cut off."""

    kind = "pad"
    widths: tuple[Pair, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Node):
    """`(start, stop, step)` for each axis but the batch."""

    kind = "slice"
    bounds: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The same values in another shape."""

    kind = "reshape"
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Transpose(Node):
    """Axes in another order; `axes` counts the batch axis, which stays first."""

    kind = "transpose"
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Expand(Node):
    """Axes of size 1 repeated."""

    kind = "expand"
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Resize(Node):
    """Interpolation to `size`, `nearest` or `linear`; the scale stays."""

    kind = "resize"
    mode: Literal["nearest", "linear"]
    size: Pair
    align_corners: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Dequantize(Node):
    """Real values: `x * scale` in float32, the scale `(C, 1, 1)`, `(C,)` or a scalar `()`."""

    kind = "dequantize"
    scale: NDArray[np.float32]


#: Code that stands for 1 in `Affine`: larger makes the bias finer, and it is a shift.
AFFINE_CODE = 64
NODES: dict[str, type[Node]] = {node.kind: node for node in Node.__subclasses__()}


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network in integers.

    Attributes:
        input: name of the tensor that holds the quantized images.
        outputs: names of the results.
        tensors: all, by name.
        nodes: operations in the order they run.
        weights: the layers as compressed, and their codebooks; vector-quantized or int8 only.
        psum_bits: width of the accumulator that sums of products must fit.
        provenance: JSON-serialisable facts about the origin.
    """

    input: str
    outputs: tuple[str, ...]
    tensors: Mapping[str, TensorSpec]
    nodes: tuple[Node, ...]
    weights: CompressedModel
    psum_bits: int = 32
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= self.psum_bits <= 32:
            raise ShapeError(f"network: psum_bits={self.psum_bits} is not in 2..32")
        known = {self.input}
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known]
            if missing or node.name in known:
                fault = f"reads {missing[0]!r}, which nothing before it makes" if missing else "is there twice"
                raise ShapeError(f"network: operation {node.name!r} {fault}; order operations as they run")
            known.add(node.name)
        if known != set(self.tensors) or not set(self.outputs) <= known or not self.outputs:
            raise ShapeError(
                f"network: tensors {sorted(known ^ set(self.tensors))[:4]} are described or made, but not both; "
                f"outputs are {self.outputs}"
            )
        layers = {layer.name for layer in self.weights.layers if not isinstance(layer, DenseLayer)}
        for node in self.nodes:
            if isinstance(node, Conv | Linear) and node.layer not in layers:
                raise ShapeError(f"network: operation {node.name!r} needs the layer {node.layer!r}, which is not there")

    @functools.cached_property
    def codes(self) -> Mapping[str, NDArray[np.int8]]:
        """Int8 weights by layer, in the shape of the dense weight; the codes of the compressed file."""
        return {layer.name: weight_codes(self.weights, layer.name) for layer in self.weights.layers}

    def node(self, name: str) -> Node:
        """An operation by name.

        Raises:
            ModelError: if there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise ModelError(f"network has no operation {name!r}; see nodes")

    def run(self, images: NDArray[np.floating]) -> Any:
        """Results for real images.

        Args:
            images: `(N, C, H, W)`, preprocessed as for the float network.

        Returns:
            float32 array; a tuple of them if the network has several outputs.

        Raises:
            ShapeError: if the images have another shape.
            PsumOverflowError: if a psum does not fit; names the layer.
        """
        from mvq.accel.network.execute import execute

        found = execute(self, images, keep=self.outputs)
        results = tuple(found[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results

    def activations(self, images: NDArray[np.floating]) -> dict[str, NDArray[Any]]:
        """Every tensor, the quantized images among them, by name; otherwise as `run`."""
        from mvq.accel.network.execute import execute

        return execute(self, images, keep=tuple(self.tensors))


def weight_codes(weights: CompressedModel, name: str) -> NDArray[np.int8]:
    """Int8 codes of a layer, dense, decoded from the codebook if it is vector-quantized.

    Raises:
        ModelError: if there is no such layer, or it is stored in float.
    """
    from mvq.format.decode import decode

    layer = _integer_layer(weights, name)
    if isinstance(layer, Int8Layer):
        return layer.codes
    values = decode(
        layer.assignments,
        layer.mask_ids,
        weights.codebooks[layer.codebook].codes.astype(np.float32),
        shape=layer.shape,
        pattern=layer.pattern,
        d=layer.d,
        packed=layer.codewords == "packed",
    )
    return values.astype(np.int8)


def weight_scales(weights: CompressedModel, name: str) -> NDArray[np.float32]:
    """What a step of the codes of each output channel stands for, `(Cout,)`.

    Raises:
        ModelError: if there is no such layer, or it is stored in float.
    """
    layer = _integer_layer(weights, name)
    if isinstance(layer, Int8Layer):
        return layer.scales
    return np.full(layer.shape[0], weights.codebooks[layer.codebook].scale, np.float32)


def _integer_layer(weights: CompressedModel, name: str) -> VQLayer | Int8Layer:
    for layer in weights.layers:
        if layer.name == name and not isinstance(layer, DenseLayer):
            return layer
    raise ModelError(f"layer {name!r} has no integer weights; quantize it first")
