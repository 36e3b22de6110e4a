"""An integer network as QDQ ONNX, arithmetic kept exactly.

Between operations tensors are int8; each is dequantized where it is read and quantized where it is made. Inside the
network one step counts as 1: convolutions and sums then work on whole numbers, which float32 holds exactly up to 2**24,
and the fixed-point factor follows in float64, where it is exact, too. With the scales inside the convolution, as other
exporters put them, float32 rounds every product, and one value that falls on the other side of a half changes a whole
region some layers later. The real scales of all tensors are in the model's metadata.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.network.arithmetic import RESIZE_BITS, Requantization, linear_weights, nearest_places
from mvq.accel.network.graph import (
    AFFINE_CODE,
    Add,
    Affine,
    AveragePool,
    Clamp,
    Concat,
    Conv,
    Dequantize,
    Expand,
    IntegerNetwork,
    Linear,
    Lookup,
    MaxPool,
    Multiply,
    Node,
    Pad,
    Rescale,
    Reshape,
    Resize,
    Slice,
    Transpose,
)
from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    import onnx

OPSET = 17
_IR_VERSION = 8
_EXACT_FLOAT32 = 1 << 24


def to_onnx(network: IntegerNetwork) -> onnx.ModelProto:
    """The network as an ONNX model of opset 17, batch axis free; input and outputs are real numbers.

    In ONNX Runtime without graph optimizations every activation equals that of `IntegerNetwork.run`; int8 tensors have
    the names of the network's.

    Raises:
        MissingDependencyError: without the package onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "exporting to ONNX needs onnx; install it with: pip install 'mvq[accel]'"
        ) from error
    graph = _Graph(network)
    for node in network.nodes:
        _emit(node, graph)
    float32 = onnx.TensorProto.FLOAT
    image = onnx.helper.make_tensor_value_info(graph.image, float32, ["N", *network.tensors[network.input].shape])
    outputs = [
        onnx.helper.make_tensor_value_info(name, float32, ["N", *network.tensors[name].shape])
        for name in network.outputs
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "integer_network", [image], outputs, graph.initializers),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="mvq",
    )
    scales = {name: spec.scale for name, spec in network.tensors.items() if spec.dtype == "int8"}
    onnx.helper.set_model_props(model, {"mvq.scales": json.dumps(scales), "mvq.psum_bits": str(network.psum_bits)})
    onnx.checker.check_model(model, full_check=True)
    return model


def write_onnx(network: IntegerNetwork, path: str | os.PathLike[str]) -> int:
    """Write `to_onnx` to a file; gives its length in bytes.

    Raises:
        FileError: if it cannot be written; a file that was there stays as it was.
        MissingDependencyError: without the package onnx.
    """
    from mvq.format.writer import replace_file

    data = to_onnx(network).SerializeToString(deterministic=True)
    return replace_file(path, [data])


class _Graph:
    """Nodes and constants of the ONNX graph so far."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._wide: dict[tuple[str, str], str] = {}
        self.image = f"{network.input}.image"
        self.quantize(self.image, network.input, network.tensors[network.input].scale)

    def op(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add an operation; gives the name of its result."""
        import onnx

        name = output or f"{kind}.{len(self.nodes)}"
        self.nodes.append(
            onnx.helper.make_node(kind, list(inputs), [name], name=f"{kind}.{len(self.nodes)}", **attributes)
        )
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """An initializer; equal ones are shared."""
        import onnx

        array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = name = f"constant.{len(self._constants)}"
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def dequantize(self, tensor: str, scale: Any = 1.0) -> str:
        """Float32 values of an int8 tensor; made once."""
        key = (tensor, self.constant(scale, np.float32))
        if key not in self._wide:
            # The zero point tells that the tensor is signed; optimizers that copy the pair go by it.
            self._wide[key] = self.op("DequantizeLinear", [*key, self.constant(0, np.int8)])
        return self._wide[key]

    def quantize(self, values: str, output: str, scale: float = 1.0) -> None:
        """An int8 tensor from float32 values."""
        self.op("QuantizeLinear", [values, self.constant(scale, np.float32), self.constant(0, np.int8)], output)

    def whole(self, tensor: str) -> str:
        """Codes of an int8 tensor in float64."""
        return self.double(self.dequantize(tensor))

    def double(self, values: str) -> str:
        """Float64."""
        return self.op("Cast", [values], to=11)

    def weight(self, codes: NDArray[np.int8]) -> str:
        """Int8 weights, dequantized."""
        return self.dequantize(self.constant(codes, np.int8))

    def finish(self, sums: str, factor: Any, low: int, high: int, output: str) -> None:
        """Multiply float64 sums, round half to even, clamp, and quantize."""
        scaled = self.op("Mul", [sums, self.constant(factor, np.float64)])
        rounded = self.op("Round", [scaled])
        clamped = self.op("Clip", [rounded, self.constant(low, np.float64), self.constant(high, np.float64)])
        self.quantize(self.op("Cast", [clamped], to=1), output)

    def requantize(self, sums: str, requantization: Requantization | None, output: str) -> None:
        """Int8 from float64 sums, or where there is no requantization int32."""
        if requantization is None:
            self.op("Cast", [sums], output, to=6)
        else:
            self.finish(sums, requantization.multiplier, requantization.low, requantization.high, output)


@functools.singledispatch
def _emit(node: Node, graph: _Graph) -> None:
    raise TypeError(f"operation {node.name!r}: a {type(node).__name__} cannot be written as ONNX")


def _chunks(codes: NDArray[np.int8], groups: int) -> list[slice]:
    """Parts of the input channels whose sums cannot pass what float32 holds exactly."""
    largest = np.abs(codes.astype(np.int64)).reshape(*codes.shape[:2], -1).sum(axis=2).max(axis=0) * 128
    bounds, total = [0], 0
    for channel, most in enumerate(largest):
        if groups == 1 and total + most > _EXACT_FLOAT32:
            bounds.append(channel)
            total = 0
        total += most
    return [slice(a, b) for a, b in zip(bounds, [*bounds[1:], codes.shape[1]], strict=True)]


@_emit.register
def _conv(node: Conv, graph: _Graph) -> None:
    codes = graph.network.codes[node.layer]
    settings = {
        "strides": node.stride,
        "pads": node.padding,
        "dilations": node.dilation,
        "group": node.groups,
        "kernel_shape": codes.shape[2:],
    }
    sums = []
    for part in _chunks(codes, node.groups):
        values = _channels(graph, node.inputs[0], part, codes.shape[1])
        sums.append(graph.double(graph.op("Conv", [values, graph.weight(codes[:, part])], **settings)))
    total = graph.op("Sum", [*sums, graph.constant(node.bias, np.float64)])
    graph.requantize(total, node.requantization, node.name)


@_emit.register
def _linear(node: Linear, graph: _Graph) -> None:
    codes = graph.network.codes[node.layer]
    sums = []
    for part in _chunks(codes, 1):
        values = _channels(graph, node.inputs[0], part, codes.shape[1])
        sums.append(graph.double(graph.op("Gemm", [values, graph.weight(codes[:, part])], transB=1)))
    total = graph.op("Sum", [*sums, graph.constant(node.bias, np.float64)])
    graph.requantize(total, node.requantization, node.name)


def _channels(graph: _Graph, tensor: str, part: slice, depth: int) -> str:
    """Some of the `depth` channels that a filter reads, dequantized."""
    if (part.start, part.stop) != (0, depth):
        starts, ends, axes = (graph.constant([n], np.int64) for n in (part.start, part.stop, 1))
        tensor = graph.op("Slice", [tensor, starts, ends, axes])
    return graph.dequantize(tensor)


@_emit.register
def _affine(node: Affine, graph: _Graph) -> None:
    scaled = graph.op("Mul", [graph.whole(node.inputs[0]), graph.constant(AFFINE_CODE, np.float64)])
    total = graph.op("Add", [scaled, graph.constant(node.bias, np.float64)])
    graph.requantize(total, node.requantization, node.name)


@_emit.register
def _add(node: Add, graph: _Graph) -> None:
    parts = [
        graph.op("Mul", [graph.whole(name), graph.constant(mantissa, np.float64)])
        for name, mantissa in zip(node.inputs, node.mantissas, strict=True)
    ]
    graph.finish(graph.op("Add", parts), np.ldexp(1.0, -node.shift), node.low, node.high, node.name)


@_emit.register
def _multiply(node: Multiply, graph: _Graph) -> None:
    product = graph.op("Mul", [graph.whole(name) for name in node.inputs])
    graph.requantize(product, node.requantization, node.name)


@_emit.register
def _rescale(node: Rescale, graph: _Graph) -> None:
    graph.requantize(graph.whole(node.inputs[0]), node.requantization, node.name)


@_emit.register
def _clamp(node: Clamp, graph: _Graph) -> None:
    limits = [graph.constant(limit, np.float32) for limit in (node.low, node.high)]
    graph.quantize(graph.op("Clip", [graph.dequantize(node.inputs[0]), *limits]), node.name)


@_emit.register
def _lookup(node: Lookup, graph: _Graph) -> None:
    place = graph.op("Cast", [node.inputs[0]], to=6)
    place = graph.op("Add", [place, graph.constant(128, np.int32)])
    graph.op("Gather", [graph.constant(node.table, node.table.dtype), place], node.name)


@_emit.register
def _max_pool(node: MaxPool, graph: _Graph) -> None:
    values = graph.dequantize(node.inputs[0])
    top, left, bottom, right = node.padding
    # Pads of the operator itself must be smaller than the kernel; this is the same and has no such limit.
    if any(node.padding):
        widths = graph.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)
        values = graph.op("Pad", [values, widths, graph.constant(-128, np.float32)])
    pooled = graph.op("MaxPool", [values], kernel_shape=node.kernel, strides=node.stride, dilations=node.dilation)
    graph.quantize(pooled, node.name)


@_emit.register
def _average_pool(node: AveragePool, graph: _Graph) -> None:
    channels = graph.network.tensors[node.inputs[0]].shape[0]
    ones = graph.weight(np.ones((channels, 1, *node.kernel), np.int8))
    values = graph.dequantize(node.inputs[0])
    sums = graph.op("Conv", [values, ones], group=channels, strides=node.stride, pads=node.padding)
    graph.requantize(graph.double(sums), node.requantization, node.name)


@_emit.register
def _concat(node: Concat, graph: _Graph) -> None:
    graph.op("Concat", node.inputs, node.name, axis=node.axis)


@_emit.register
def _pad(node: Pad, graph: _Graph) -> None:
    widths = [0, *(a for a, _ in node.widths), 0, *(b for _, b in node.widths)]
    graph.op("Pad", [node.inputs[0], graph.constant(widths, np.int64)], node.name)


@_emit.register
def _slice(node: Slice, graph: _Graph) -> None:
    columns = [*zip(*node.bounds, strict=True), range(1, len(node.bounds) + 1)]
    starts, ends, steps, axes = (graph.constant(list(column), np.int64) for column in columns)
    graph.op("Slice", [node.inputs[0], starts, ends, axes, steps], node.name)


@_emit.register
def _reshape(node: Reshape, graph: _Graph) -> None:
    graph.op("Reshape", [node.inputs[0], graph.constant([0, *node.shape], np.int64)], node.name)


@_emit.register
def _transpose(node: Transpose, graph: _Graph) -> None:
    graph.op("Transpose", node.inputs, node.name, perm=node.axes)


@_emit.register
def _expand(node: Expand, graph: _Graph) -> None:
    graph.op("Expand", [node.inputs[0], graph.constant([1, *node.shape], np.int64)], node.name)


@_emit.register
def _resize(node: Resize, graph: _Graph) -> None:
    sizes = graph.network.tensors[node.inputs[0]].shape[1:]
    if node.mode == "nearest":
        rows, columns = (graph.constant(nearest_places(n, m), np.int64) for n, m in zip(sizes, node.size, strict=True))
        graph.op("Gather", [graph.op("Gather", [node.inputs[0], rows], axis=2), columns], node.name, axis=3)
        return
    down, right = (
        linear_weights(n, m, align_corners=node.align_corners) for n, m in zip(sizes, node.size, strict=True)
    )
    sums = graph.op("MatMul", [graph.constant(down, np.float64), graph.whole(node.inputs[0])])
    sums = graph.op("MatMul", [sums, graph.constant(right.T, np.float64)])
    graph.finish(sums, np.ldexp(1.0, -2 * RESIZE_BITS), -128, 127, node.name)


@_emit.register
def _dequantize(node: Dequantize, graph: _Graph) -> None:
    if graph.network.tensors[node.inputs[0]].dtype == "int8":
        inputs = [node.inputs[0], graph.constant(node.scale.reshape(()), np.float32), graph.constant(0, np.int8)]
        graph.op("DequantizeLinear", inputs, node.name)
    else:
        # Not DequantizeLinear: optimizers take what it reads for 8 bits.
        graph.op("Mul", [graph.op("Cast", [node.inputs[0]], to=1), graph.constant(node.scale, np.float32)], node.name)
