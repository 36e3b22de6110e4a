"""How a torch model becomes an integer network: trace, plan, calibrate, emit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from mvq.accel.network.arithmetic import HIGH, LOW, MAX_BIAS, Requantization, fixed_point, quantize
from mvq.accel.network.calibration import Method, Observer, check_method, image_batches
from mvq.accel.network.execute import describe
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
    weight_scales,
)
from mvq.accel.network.operations import LEAVES, recognize, shape_of
from mvq.accel.network.planning import Plan, Step, plan
from mvq.accel.network.tracing import run, trace
from mvq.compressed import CompressedModel, DenseLayer, Int8Layer, Layer, VQLayer
from mvq.errors import DataError, ModelError
from mvq.recipe import Recipe


def from_torch(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    compressed: CompressedModel | None = None,
    method: Method = "mse",
    psum_bits: int = 32,
    provenance: Mapping[str, Any] | None = None,
) -> IntegerNetwork:
    """Turn a network into integers.

    Args:
        model: any that torch.fx can trace once shapes are known, with one input; its mode is restored.
        calibration: batches of images `(N, C, H, W)`, alone or first in a pair, preprocessed as in use. All of one
            size; a batch of another number of images than the first is left out.
        compressed: its weights as `mvq.nn.extract` or `mvq.format.read` gives them. Their codes become the weights;
            what is stored in float, and every layer where this is None, is quantized to int8 with a scale for each
            output channel.
        method: how ranges of activations are found: `mse` (least squared error), `max`, or `percentile` (99.99).
        psum_bits: width of the accumulator.
        provenance: JSON-serialisable facts to go along.

    Raises:
        ConfigError: if the method is not known.
        DataError: if there are no images.
        ModelError: if the model cannot be traced, listing all operations that have no integer form, or if the
            compressed weights are missing or of another network.
    """
    check_method(method)
    was_training = model.training
    model.eval()
    try:
        batches = image_batches(calibration)
        first = next(batches, None)
        if first is None:
            raise DataError("calibration: there is no batch of images; give some that are typical of the use")
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        graph = trace(model, first.to(place), LEAVES)
        source = next(n for n in graph.nodes if n.op == "placeholder")
        made = plan(source, *recognize(model, graph))
        weights = _integer_weights(model, made, compressed)
        scales = _calibrate(model, graph, made, method, place, [first], batches)
        return _Emitter(made, weights, scales).network(psum_bits, dict(provenance or {}))
    finally:
        model.train(was_training)


def _calibrate(
    model: nn.Module,
    graph: fx.Graph,
    made: Plan,
    method: Method,
    place: torch.device,
    first: list[Tensor],
    rest: Iterable[Tensor],
) -> dict[fx.Node, float]:
    """A scale for each int8 tensor."""
    observers = {node: Observer() for node in made.scale_of.values()}

    def observe(node: fx.Node, values: Tensor) -> None:
        if node in observers:
            try:
                observers[node].observe(values)
            except ModelError as error:
                raise ModelError(f"calibration: tensor {node.name!r}: {error}; check the images and weights") from None

    for batches in (first, rest):
        for images in batches:
            if len(images) == len(first[0]):
                run(model, graph, images.to(place), observe)
    return {node: observers[root].scale(method) for node, root in made.scale_of.items()}


def _integer_weights(model: nn.Module, made: Plan, compressed: CompressedModel | None) -> CompressedModel:
    """The layers that the plan needs, all in integers."""
    stored: dict[str, Layer] = {} if compressed is None else {layer.name: layer for layer in compressed.layers}
    layers: dict[str, Layer] = {}
    for step in made.steps:
        name = step.operation.settings.get("layer")
        if name is not None and name not in layers:
            layers[name] = _integer_layer(name, step.operation.module, stored, compressed is not None)
    used = {layer.codebook for layer in layers.values() if isinstance(layer, VQLayer)}
    codebooks = {} if compressed is None else {k: c for k, c in compressed.codebooks.items() if k in used}
    recipe = Recipe() if compressed is None else compressed.recipe
    return CompressedModel(recipe, tuple(layers.values()), codebooks, {})


def _integer_layer(name: str, module: Any, stored: Mapping[str, Layer], known: bool) -> Layer:
    layer = stored.get(name)
    if known and (layer is None or layer.shape != tuple(module.weight.shape)):
        found = "missing" if layer is None else f"of shape {layer.shape}"
        raise ModelError(
            f"layer {name!r} of shape {tuple(module.weight.shape)} is {found} among the compressed weights; give those "
            f"of this model"
        )
    if layer is not None and not isinstance(layer, DenseLayer):
        return layer
    forms = module.parametrizations["weight"] if parametrize.is_parametrized(module, "weight") else ()
    if any(hasattr(form, "codebook") or hasattr(form, "scales") for form in forms):
        raise ModelError(f"layer {name!r} is compressed; pass its codes with compressed=mvq.nn.extract(model)")
    weight = module.weight.detach().float().cpu().numpy()
    if layer is not None:
        return _quantized(name, layer.kind, layer.role, weight)
    what = "conv" if isinstance(module, nn.Conv2d) else "linear"
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    return _quantized(name, what, "depthwise" if depthwise else what, weight)


def _quantized(name: str, kind: Any, role: Any, weight: NDArray[np.float32]) -> Int8Layer:
    """Int8 with a scale `max|w| / 127` for each output channel, 1 where all weights are zero."""
    top = np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(HIGH)
    if not np.isfinite(top).all():
        raise ModelError(f"layer {name!r}: its weight holds NaN or infinity; load other weights")
    scales = np.where(top < np.finfo(np.float32).tiny, np.float32(1), top).astype(np.float32)
    codes = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).clip(-HIGH, HIGH).astype(np.int8)
    return Int8Layer(name, kind, role, codes, scales)


class _Emitter:
    """Nodes from steps."""

    def __init__(self, made: Plan, weights: CompressedModel, scales: Mapping[fx.Node, float]) -> None:
        self._plan = made
        self._weights = weights
        self._scales = scales
        self._nodes: list[Node] = []
        # Steps that hand out sums: what a unit of the sum is worth.
        self._units: dict[fx.Node, NDArray[np.float32]] = {}
        self._real: dict[fx.Node, str] = {}

    def network(self, psum_bits: int, provenance: dict[str, Any]) -> IntegerNetwork:
        for step in self._plan.steps:
            getattr(self, f"_{step.kind}")(step)
            if step.is_real:
                self._real[step.result] = step.result.name
        outputs = tuple(self._real_name(node) for node in self._plan.results)
        source = self._plan.source
        scales = {node.name: scale for node, scale in self._scales.items()}
        # Beside the named values: parts of one step.
        for node in self._nodes:
            base, _, part = node.name.rpartition(".")
            if base and part != "real":
                scales[node.name] = scales.get(base, 1.0)
        spec = TensorSpec(shape_of(source), "int8", self._scales[source])
        specs = describe(source.name, spec, self._nodes, self._weights, scales)
        specs = {n: s if s.dtype == "int8" else TensorSpec(s.shape, s.dtype) for n, s in specs.items()}
        nodes = tuple(self._nodes)
        return IntegerNetwork(source.name, outputs, specs, nodes, self._weights, psum_bits, provenance)

    def _add_node(self, kind: type[Node], step: Step, name: str | None = None, **values: Any) -> None:
        inputs = values.pop("inputs", None) or self._inputs(step)
        self._nodes.append(kind(name=name or step.result.name, inputs=inputs, **values))

    def _inputs(self, step: Step) -> tuple[str, ...]:
        return tuple(
            self._real_name(node) if step.is_real and step.kind != "function" else node.name for node in step.inputs
        )

    def _real_name(self, node: fx.Node) -> str:
        """The tensor of real numbers for a value, made on first use."""
        if node not in self._real:
            self._real[node] = f"{node.name}.real"
            scale = self._units.get(node, np.float32(self._scales.get(node, 1.0)))
            self._nodes.append(
                Dequantize(name=self._real[node], inputs=(node.name,), scale=np.asarray(scale, np.float32))
            )
        return self._real[node]

    def _requantization(self, step: Step, multiplier: Any) -> Requantization:
        return Requantization.of(multiplier, *self._bounds(step))

    def _bounds(self, step: Step) -> tuple[int, int]:
        scale = self._scales[step.result]
        low = LOW if math.isinf(step.low) else max(LOW, round(step.low / scale))
        return low, HIGH if math.isinf(step.high) else min(HIGH, round(step.high / scale))

    def _folded(
        self, step: Step, unit: NDArray[np.float64], bias: Any
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Integer bias and the real value of a unit of psum and bias, batch norm in both."""
        offset = np.zeros(len(unit)) if bias is None else _numpy(bias)
        norm = step.operation.module if step.kind == "norm" else step.norm
        if norm is not None:
            gamma = 1.0 if norm.weight is None else _numpy(norm.weight)
            beta = 0.0 if norm.bias is None else _numpy(norm.bias)
            factor = gamma / np.sqrt(_numpy(norm.running_var) + norm.eps)
            unit, offset = unit * factor, beta + factor * (offset - _numpy(norm.running_mean))
        # A channel that its batch norm makes all but constant: a unit in which the constant fits.
        least = np.abs(offset) / MAX_BIAS
        unit = np.where(np.abs(unit) < least, np.where(unit < 0, -least, least), unit)
        codes = np.rint(np.divide(offset, unit, out=np.zeros(len(unit)), where=unit != 0)).astype(np.int32)
        return codes, unit

    def _weighted(self, step: Step) -> dict[str, Any]:
        """Bias and requantization of a layer, by channel along the first axis of the result."""
        layer = step.operation.settings["layer"]
        scale = self._scales[step.inputs[0]] * weight_scales(self._weights, layer).astype(np.float64)
        bias, unit = self._folded(step, scale, step.operation.module.bias)
        shape = (-1, *[1] * (len(shape_of(step.result)) - 1))
        requantization = None
        if step.is_sum:
            self._units[step.result] = unit.reshape(shape).astype(np.float32)
        else:
            requantization = self._requantization(step, unit.reshape(shape) / self._scales[step.result])
        return {"layer": layer, "bias": bias.reshape(shape), "requantization": requantization}

    def _conv(self, step: Step) -> None:
        settings = {k: v for k, v in step.operation.settings.items() if k != "layer"}
        settings["padding"] = tuple(a + b for a, b in zip(settings["padding"], step.padding, strict=True))
        self._add_node(Conv, step, **self._weighted(step), **settings)

    def _linear(self, step: Step) -> None:
        self._add_node(Linear, step, **self._weighted(step))

    def _norm(self, step: Step) -> None:
        n = shape_of(step.result)[0]
        bias, unit = self._folded(step, np.full(n, self._scales[step.inputs[0]] / AFFINE_CODE), None)
        shape = (-1, *[1] * (len(shape_of(step.result)) - 1))
        requantization = self._requantization(step, unit.reshape(shape) / self._scales[step.result])
        self._add_node(Affine, step, bias=bias.reshape(shape), requantization=requantization)

    def _add(self, step: Step) -> None:
        ratios = [self._scales[node] / self._scales[step.result] for node in step.inputs]
        shift = int(fixed_point(ratios)[1].min())
        first, second = (round(math.ldexp(ratio, shift)) for ratio in ratios)
        low, high = self._bounds(step)
        self._add_node(Add, step, mantissas=(first, second), shift=shift, low=low, high=high)

    def _multiply(self, step: Step) -> None:
        first, second = (self._scales[node] for node in step.inputs)
        requantization = self._requantization(step, first * second / self._scales[step.result])
        self._add_node(Multiply, step, requantization=requantization)

    def _clamp(self, step: Step) -> None:
        scale = self._scales[step.result]
        low, high = (
            limit if math.isinf(bound) else round(np.clip(bound / scale, LOW, HIGH))
            for bound, limit in ((step.operation.settings["low"], LOW), (step.operation.settings["high"], HIGH))
        )
        self._add_node(Clamp, step, low=low, high=high)

    def _function(self, step: Step) -> None:
        codes = torch.arange(LOW, HIGH + 1, dtype=torch.float64) * self._scales[step.inputs[0]]
        with torch.no_grad():
            values = step.operation.settings["call"](codes).numpy()
        table = values.astype(np.float32) if step.is_real else quantize(values, self._scales[step.result])
        self._add_node(Lookup, step, table=table)

    def _average_pool(self, step: Step) -> None:
        settings = dict(step.operation.settings)
        unit = self._scales[step.inputs[0]] / np.asarray(settings.pop("divisor"), np.float64)
        requantization = None
        if step.is_sum:
            self._units[step.result] = unit.astype(np.float32)
        else:
            requantization = self._requantization(step, unit / self._scales[step.result])
        flat = len(shape_of(step.operation.node)) == 1
        name = f"{step.result.name}.sums" if flat else None
        self._add_node(AveragePool, step, name, requantization=requantization, **settings)
        if flat:
            self._add_node(Reshape, step, inputs=(f"{step.result.name}.sums",), shape=shape_of(step.result))

    def _concat(self, step: Step) -> None:
        inputs = self._inputs(step)
        if not step.is_real:
            inputs = tuple(self._rescaled(step, node, i) for i, node in enumerate(step.inputs))
        self._add_node(Concat, step, inputs=inputs, axis=step.operation.settings["axis"])

    def _rescaled(self, step: Step, node: fx.Node, place: int) -> str:
        ratio = self._scales[node] / self._scales[step.result]
        if ratio == 1:
            return node.name
        name = f"{step.result.name}.{place}"
        self._nodes.append(Rescale(name=name, inputs=(node.name,), requantization=Requantization.of(ratio)))
        return name

    def _max_pool(self, step: Step) -> None:
        self._add_node(MaxPool, step, **step.operation.settings)

    def _pad(self, step: Step) -> None:
        self._add_node(Pad, step, **step.operation.settings)

    def _slice(self, step: Step) -> None:
        self._add_node(Slice, step, **step.operation.settings)

    def _transpose(self, step: Step) -> None:
        self._add_node(Transpose, step, **step.operation.settings)

    def _resize(self, step: Step) -> None:
        self._add_node(Resize, step, **step.operation.settings)

    def _reshape(self, step: Step) -> None:
        self._add_node(Reshape, step, shape=shape_of(step.result))

    def _expand(self, step: Step) -> None:
        self._add_node(Expand, step, shape=shape_of(step.result))


def _numpy(tensor: Any) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()
