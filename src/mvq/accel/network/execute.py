"""Running an integer network in NumPy, layer by layer, exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.network.arithmetic import (
    Requantization,
    checked_psums,
    conv2d_int,
    linear_int,
    max_pool,
    nearest_places,
    pool_sums,
    quantize,
    resize_linear,
    round_shift,
)
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
    TensorSpec,
    Transpose,
)
from mvq.compressed import CompressedModel
from mvq.errors import ShapeError

Array = NDArray[Any]
#: From an operation, what it reads and the network to its result.
Compute = Callable[[Node, list[Array], IntegerNetwork], Array]


def execute(
    network: IntegerNetwork, images: NDArray[np.floating], *, keep: Sequence[str], compute: Compute | None = None
) -> dict[str, Array]:
    """Run a network on real images.

    Args:
        network: what to run.
        images: `(N, C, H, W)`.
        keep: names of the tensors wanted; others are dropped as soon as nothing needs them.
        compute: what computes an operation; by default the function of that name.

    Returns:
        The tensors wanted, in the order they were made.

    Raises:
        ShapeError: if the images have another shape.
        PsumOverflowError: if a psum does not fit.
    """
    spec = network.tensors[network.input]
    if tuple(images.shape[1:]) != spec.shape:
        raise ShapeError(f"images {tuple(images.shape)}: the network takes {('N', *spec.shape)}; resize or crop them")
    run = compute or _compute
    last_use = {name: i for i, node in enumerate(network.nodes) for name in node.inputs}
    values: dict[str, Array] = {network.input: quantize(images, spec.scale)}
    for i, node in enumerate(network.nodes):
        values[node.name] = run(node, [values[name] for name in node.inputs], network)
        for name in node.inputs:
            if last_use[name] == i and name not in keep:
                values.pop(name, None)
    return {name: value for name, value in values.items() if name in keep}


@functools.singledispatch
def compute(node: Node, inputs: list[Array], network: IntegerNetwork) -> Array:
    """The result of one operation on `(N, ...)` arrays.

    Args:
        node: the operation.
        inputs: what it reads, in order.
        network: for weights and the width of psums.

    Raises:
        PsumOverflowError: if a psum does not fit.
    """
    raise TypeError(f"operation {node.name!r}: a {type(node).__name__} cannot be computed")


_compute: Compute = compute


def finish_sums(sums: Array, bias: NDArray[np.int32], requantization: Requantization | None, name: str) -> Array:
    """Int8 by the requantization, or where there is none int32 `sums + bias`.

    Raises:
        PsumOverflowError: if a sum that is not requantized does not fit 32 bits.
    """
    if requantization is not None:
        return requantization.apply(sums, bias)
    return checked_psums(sums.astype(np.int64) + bias, 32, name)


@compute.register
def _conv(node: Conv, inputs: list[Array], network: IntegerNetwork) -> Array:
    psums = conv2d_int(
        inputs[0],
        network.codes[node.layer],
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
        psum_bits=network.psum_bits,
        name=node.layer,
    )
    return finish_sums(psums, node.bias, node.requantization, node.layer)


@compute.register
def _linear(node: Linear, inputs: list[Array], network: IntegerNetwork) -> Array:
    psums = linear_int(inputs[0], network.codes[node.layer], psum_bits=network.psum_bits, name=node.layer)
    return finish_sums(psums, node.bias, node.requantization, node.layer)


@compute.register
def _affine(node: Affine, inputs: list[Array], network: IntegerNetwork) -> Array:
    return node.requantization.apply(inputs[0].astype(np.int32) * AFFINE_CODE, node.bias)


@compute.register
def _add(node: Add, inputs: list[Array], network: IntegerNetwork) -> Array:
    first, second = (x.astype(np.int64) * m for x, m in zip(inputs, node.mantissas, strict=True))
    return np.clip(round_shift(first + second, node.shift), node.low, node.high).astype(np.int8)


@compute.register
def _multiply(node: Multiply, inputs: list[Array], network: IntegerNetwork) -> Array:
    return node.requantization.apply(inputs[0].astype(np.int32) * inputs[1])


@compute.register
def _rescale(node: Rescale, inputs: list[Array], network: IntegerNetwork) -> Array:
    return node.requantization.apply(inputs[0])


@compute.register
def _clamp(node: Clamp, inputs: list[Array], network: IntegerNetwork) -> Array:
    return np.clip(inputs[0], np.int8(node.low), np.int8(node.high))


@compute.register
def _lookup(node: Lookup, inputs: list[Array], network: IntegerNetwork) -> Array:
    return node.table[inputs[0].astype(np.intp) + 128]


@compute.register
def _max_pool(node: MaxPool, inputs: list[Array], network: IntegerNetwork) -> Array:
    return max_pool(inputs[0], node.kernel, node.stride, node.padding, node.dilation)


@compute.register
def _average_pool(node: AveragePool, inputs: list[Array], network: IntegerNetwork) -> Array:
    sums = pool_sums(inputs[0], node.kernel, node.stride, node.padding)
    return sums if node.requantization is None else node.requantization.apply(sums)


@compute.register
def _concat(node: Concat, inputs: list[Array], network: IntegerNetwork) -> Array:
    return np.concatenate(inputs, axis=node.axis)


@compute.register
def _pad(node: Pad, inputs: list[Array], network: IntegerNetwork) -> Array:
    x = inputs[0]
    cut = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(node.widths, x.shape[1:], strict=True)]
    return np.pad(x[(slice(None), *cut)], [(0, 0), *((max(a, 0), max(b, 0)) for a, b in node.widths)])


@compute.register
def _slice(node: Slice, inputs: list[Array], network: IntegerNetwork) -> Array:
    return inputs[0][(slice(None), *(slice(*bounds) for bounds in node.bounds))]


@compute.register
def _reshape(node: Reshape, inputs: list[Array], network: IntegerNetwork) -> Array:
    if math.prod(inputs[0].shape[1:]) != math.prod(node.shape):
        raise ShapeError(f"{inputs[0].shape[1:]} does not hold as many values as {node.shape}")
    return inputs[0].reshape(len(inputs[0]), *node.shape)


@compute.register
def _transpose(node: Transpose, inputs: list[Array], network: IntegerNetwork) -> Array:
    return inputs[0].transpose(node.axes)


@compute.register
def _expand(node: Expand, inputs: list[Array], network: IntegerNetwork) -> Array:
    return np.broadcast_to(inputs[0], (len(inputs[0]), *node.shape))


@compute.register
def _resize(node: Resize, inputs: list[Array], network: IntegerNetwork) -> Array:
    if node.mode == "linear":
        return resize_linear(inputs[0], node.size, align_corners=node.align_corners)
    rows, columns = (nearest_places(n, size) for n, size in zip(inputs[0].shape[2:], node.size, strict=True))
    return inputs[0][:, :, rows[:, None], columns]


@compute.register
def _dequantize(node: Dequantize, inputs: list[Array], network: IntegerNetwork) -> Array:
    return inputs[0].astype(np.float32) * node.scale


def describe(
    input_name: str, spec: TensorSpec, nodes: Sequence[Node], weights: CompressedModel, scales: Mapping[str, float]
) -> dict[str, TensorSpec]:
    """Shapes and types of all tensors, found by running the operations on no image.

    Args:
        input_name: of the tensor of quantized images.
        spec: of that tensor.
        nodes: in order.
        weights: of the layers.
        scales: of int8 tensors by name.

    Raises:
        ShapeError: if an operation does not fit what it reads; names it.
    """
    network = IntegerNetwork(input_name, (input_name,), {input_name: spec}, (), weights)
    values: dict[str, Array] = {input_name: np.zeros((0, *spec.shape), np.int8)}
    specs = {input_name: spec}
    for node in nodes:
        try:
            values[node.name] = value = compute(node, [values[name] for name in node.inputs], network)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise ShapeError(f"operation {node.name!r} ({node.kind}) does not fit its inputs: {error}") from error
        dtype: Any = value.dtype.name
        specs[node.name] = TensorSpec(value.shape[1:], dtype, scales.get(node.name, 1.0))
    return specs
