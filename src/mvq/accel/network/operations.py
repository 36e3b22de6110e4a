"""What each traced operation of a torch network means, in the terms of the integer network.

A handler takes the traced node and the arguments of the call and gives an `Operation`, or the node itself that passes
through unchanged. Modules are taken as calls of their functional forms.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional
from torchvision.ops import StochasticDepth, stochastic_depth

from mvq.accel.network.arithmetic import Padding, Pair
from mvq.errors import ModelError


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation on tensors.

    Attributes:
        kind: `conv`, `linear`, `norm`, `clamp`, `function`, or the kind of a node of the integer network.
        node: its result.
        inputs: what it reads.
        module: of a layer or norm.
        settings: by name, see the handlers.
    """

    kind: str
    node: fx.Node
    inputs: tuple[fx.Node, ...]
    module: Any = None
    settings: dict[str, Any] = field(default_factory=dict)


class _Unsupported(Exception):
    """Why an operation has no integer form."""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a traced tensor without the batch axis."""
    return tuple(node.meta["value"].shape[1:])


def recognize(model: nn.Module, graph: fx.Graph) -> tuple[list[Operation], list[fx.Node]]:
    """Operations in order, and the results of the network.

    Raises:
        ModelError: listing every operation that has no integer form.
    """
    names = _Names()
    operations, faults = [], []
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if _is_pieces(node):
            node.meta["source"] = names.read(node.args[0])
            continue
        try:
            found = _recognize(model, node, names)
        except _Unsupported as reason:
            faults.append(f"{node.name}: {_title(model, node)}{': ' if str(reason) else ''}{reason}")
            continue
        if isinstance(found, fx.Node):
            names.same[node] = found
        else:
            operations.append(found)
            if _is_in_place(model, node):
                names.same[found.inputs[0]] = node
    output = next(n for n in graph.nodes if n.op == "output")
    results: list[fx.Node] = []
    map_arg(output.args, lambda n: results.append(names.read(n)))
    if faults:
        raise ModelError(
            f"model {type(model).__name__} has {len(faults)} operations without an integer form:\n  "
            + "\n  ".join(faults)
            + "\nreplace them by supported ones, or export the part of the network before them"
        )
    return operations, results


class _Names:
    """What a traced value is now: another one, if an operation passed it through or changed it in place."""

    def __init__(self) -> None:
        self.same: dict[fx.Node, fx.Node] = {}

    def read(self, node: Any) -> Any:
        while node in self.same:
            node = self.same[node]
        return node


def _is_in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "inplace", False)
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return bool(node.kwargs.get("inplace")) or node.target in (operator.iadd, operator.imul)


def _recognize(model: nn.Module, node: fx.Node, names: _Names) -> Operation | fx.Node:
    args = map_arg(node.args, names.read)
    kwargs = map_arg(node.kwargs, names.read)
    batch = next(n for n in node.graph.nodes if n.op == "placeholder").meta["value"].shape[0]
    value = node.meta.get("value")
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != batch:
        raise _Unsupported("its result is no tensor whose first axis is the batch")
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        for kind, handler in _MODULES:
            if isinstance(module, kind):
                return handler(node, module, *args, **kwargs)
        raise _Unsupported
    handler = _CALLS.get(node.target)
    if handler is None:
        raise _Unsupported
    try:
        return handler(node, *args, **kwargs)
    except TypeError as error:
        raise _Unsupported(str(error)) from None


def _title(model: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"module {type(model.get_submodule(str(node.target))).__name__} {str(node.target)!r}"
    if node.op == "get_attr":
        return f"constant {str(node.target)!r}"
    return f"{'method' if node.op == 'call_method' else 'function'} {getattr(node.target, '__name__', node.target)}"


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise _Unsupported(reason)


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _symmetric(value: int | Sequence[int]) -> Padding:
    down, right = _pair(value)
    return down, right, down, right


def _conv(node: fx.Node, module: nn.Conv2d, x: fx.Node) -> Operation:
    _need(module.padding_mode == "zeros" or not any(map(int, module.padding)), f"padding {module.padding_mode}")
    dilation = _pair(module.dilation)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, module.kernel_size, strict=True)]
        padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    else:
        padding = (0, 0, 0, 0) if module.padding == "valid" else _symmetric(module.padding)  # type: ignore[arg-type]
    settings = {"stride": _pair(module.stride), "padding": padding, "dilation": dilation, "groups": module.groups}
    return Operation("conv", node, (x,), module, {**settings, "layer": str(node.target)})


def _linear(node: fx.Node, module: nn.Linear, x: fx.Node) -> Operation:
    _need(len(shape_of(x)) == 1, f"its input has the shape {('N', *shape_of(x))}, not ('N', C)")
    return Operation("linear", node, (x,), module, {"layer": str(node.target)})


def _norm(node: fx.Node, module: nn.BatchNorm2d, x: fx.Node) -> Operation:
    _need(module.running_mean is not None, "it keeps no statistics")
    _need(len(shape_of(x)) in (1, 3), f"its input has the shape {('N', *shape_of(x))}")
    return Operation("norm", node, (x,), module)


def _clamp(node: fx.Node, x: fx.Node, low: float | None, high: float | None) -> Operation:
    bounds = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
    _need(bounds["low"] <= 0 <= bounds["high"], f"its range {low}..{high} does not hold 0")
    return Operation("clamp", node, (x,), settings=bounds)


def _function(node: fx.Node, x: fx.Node, call: Callable[[Tensor], Tensor]) -> Operation:
    return Operation("function", node, (x,), settings={"call": call})


def _called(node: fx.Node, x: fx.Node, *args: Any, **kwargs: Any) -> Operation:
    target: Any = getattr(torch, node.target) if isinstance(node.target, str) else node.target
    kwargs.pop("inplace", None)
    return _function(node, x, lambda values: target(values, *args, **kwargs))


def _prelu(node: fx.Node, module: nn.PReLU, x: fx.Node) -> Operation:
    _need(module.num_parameters == 1, "one slope a channel; only one for all is supported")
    return _function(node, x, lambda values: functional.prelu(values, module.weight.to(values)))


def _two(kind: str) -> Callable[..., Operation]:
    def handler(node: fx.Node, first: Any, second: Any, *, alpha: float = 1) -> Operation:
        _need(isinstance(first, fx.Node) and isinstance(second, fx.Node), "one operand is no activation")
        _need(alpha == 1, f"alpha={alpha}")
        _need(len(shape_of(first)) == len(shape_of(second)), "operands have different numbers of axes")
        return Operation(kind, node, (first, second))

    return handler


def _concat(node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> Operation:
    axis = dim % (len(shape_of(node)) + 1)
    _need(axis > 0, "along the batch")
    return Operation("concat", node, tuple(tensors), settings={"axis": axis})


def _whole(x: fx.Node, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, size: Pair) -> Padding:
    """Padding grown at bottom and right until the windows end at the given size (`ceil_mode`)."""
    height, width = shape_of(x)[1:]
    needed = [(size[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    bottom = max(padding[2], needed[0] - height - padding[0])
    return padding[0], padding[1], bottom, max(padding[3], needed[1] - width - padding[1])


def _max_pool(
    node: fx.Node,
    x: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Operation:
    _need(not return_indices, "with indices")
    kernel, spread = _pair(kernel_size), _pair(dilation)
    step = _pair(stride) if stride else kernel
    _, *size = shape_of(node)
    pads = _whole(x, kernel, step, _symmetric(padding), spread, _pair(size))
    return Operation(
        "max_pool", node, (x,), settings={"kernel": kernel, "stride": step, "padding": pads, "dilation": spread}
    )


def _average_pool(
    node: fx.Node,
    x: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Operation:
    kernel = _pair(kernel_size)
    step = _pair(stride) if stride else kernel
    _, *size = shape_of(node)
    pads = _whole(x, kernel, step, _symmetric(padding), (1, 1), _pair(size))
    ones = torch.ones(1, 1, *shape_of(x)[1:], dtype=torch.float64)
    # What torch divides by at each place: the sum over ones, which counts them, by their mean.
    sums = functional.avg_pool2d(ones, kernel, step, _pair(padding), ceil_mode, True, 1)
    means = functional.avg_pool2d(ones, kernel, step, _pair(padding), ceil_mode, count_include_pad, divisor_override)
    divisor = (sums / means).round()[0].numpy()
    return _averaged(node, x, kernel, step, pads, divisor if (divisor != divisor.flat[0]).any() else divisor.flat[0])


def _averaged(node: fx.Node, x: fx.Node, kernel: Pair, stride: Pair, padding: Padding, divisor: Any) -> Operation:
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "divisor": divisor}
    return Operation("average_pool", node, (x,), settings=settings)


def _adaptive(node: fx.Node, x: fx.Node, output_size: Any) -> Operation | fx.Node:
    _, height, width = shape_of(x)
    _, *out = shape_of(node)
    if out == [height, width]:
        return x
    _need(height % out[0] == 0 and width % out[1] == 0, f"{(height, width)} is no multiple of {tuple(out)}")
    kernel = (height // out[0], width // out[1])
    return _averaged(node, x, kernel, kernel, (0, 0, 0, 0), kernel[0] * kernel[1])


def _mean(node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False) -> Operation:
    axes = sorted(d % 4 for d in dim) if isinstance(dim, Sequence) and len(shape_of(x)) == 3 else None
    _need(axes == [2, 3], f"over the axes {dim}; only both spatial axes at once")
    _, height, width = shape_of(x)
    return _averaged(node, x, (height, width), (height, width), (0, 0, 0, 0), height * width)


def _reshape(node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Operation | fx.Node:
    return x if shape_of(x) == shape_of(node) else Operation("reshape", node, (x,))


def _permute(node: fx.Node, x: fx.Node, *dims: Any) -> Operation:
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    axes = tuple(d % (len(shape_of(x)) + 1) for d in order)
    _need(axes[0] == 0, "it moves the batch axis")
    return Operation("transpose", node, (x,), settings={"axes": axes})


def _transpose(node: fx.Node, x: fx.Node, dim0: int, dim1: int) -> Operation:
    axes = list(range(len(shape_of(x)) + 1))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(node, x, axes)


def _expand(node: fx.Node, x: fx.Node, *_: Any) -> Operation | fx.Node:
    _need(len(shape_of(x)) == len(shape_of(node)), "it adds axes")
    return _reshape(node, x) if shape_of(x) == shape_of(node) else Operation("expand", node, (x,))


def _pad(
    node: fx.Node, x: fx.Node, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Operation:
    _need(mode == "constant" and not value, f"mode {mode!r}, value {value}; only zeros")
    pairs = [(int(a), int(b)) for a, b in zip(pad[::2], pad[1::2], strict=True)]
    _need(len(pairs) <= len(shape_of(x)), "along the batch")
    widths = [(0, 0)] * (len(shape_of(x)) - len(pairs)) + pairs[::-1]
    return Operation("pad", node, (x,), settings={"widths": tuple(widths)})


def _zero_pad(node: fx.Node, module: nn.ZeroPad2d, x: fx.Node) -> Operation:
    return _pad(node, x, module.padding)


def _interpolate(
    node: fx.Node,
    x: fx.Node,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Operation:
    _need(mode in ("nearest", "bilinear") and not antialias, f"mode {mode!r}, antialias={antialias}")
    target = _pair(shape_of(node)[1:])
    if scale_factor is not None and not recompute_scale_factor:
        factors = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
        exact = all(n * f == t for n, f, t in zip(shape_of(x)[1:], factors, target, strict=True))
        _need(exact, f"scale_factor={scale_factor} gives no whole size; give the size")
    settings = {"mode": "nearest" if mode == "nearest" else "linear", "size": target}
    return Operation("resize", node, (x,), settings={**settings, "align_corners": bool(align_corners)})


def _upsample(node: fx.Node, module: nn.Upsample, x: fx.Node) -> Operation:
    return _interpolate(
        node, x, module.size, module.scale_factor, module.mode, module.align_corners, module.recompute_scale_factor
    )


def _is_pieces(node: fx.Node) -> bool:
    """Whether it cuts a tensor; the pieces are read by `getitem`."""
    return node.target in ("chunk", "split", torch.chunk, torch.split)


def _getitem(node: fx.Node, x: fx.Node, index: Any) -> Operation | fx.Node:
    if _is_pieces(x):
        return _piece(node, x, index)
    _need(isinstance(x.meta["value"], Tensor), "of several results")
    shape = (1, *shape_of(x))
    given = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in given:
        at = given.index(Ellipsis)
        given[at : at + 1] = [slice(None)] * (len(shape) - len(given) + 1)
    given += [slice(None)] * (len(shape) - len(given))
    _need(all(isinstance(i, slice) for i in given), "only slices")
    _need(given[0] == slice(None), "along the batch")
    bounds = tuple(i.indices(n) for i, n in zip(given[1:], shape[1:], strict=True))
    return Operation("slice", node, (x,), settings={"bounds": bounds})


def _piece(node: fx.Node, cut: fx.Node, index: int) -> Operation:
    arguments = dict(zip(("x", "size", "dim"), cut.args, strict=False)) | dict(cut.kwargs)
    x = cut.meta["source"]
    pieces = cut.meta["value"]
    axis = int(arguments.get("dim", 0)) % pieces[0].ndim  # type: ignore[arg-type]
    _need(axis > 0, "along the batch")
    start = sum(p.shape[axis] for p in pieces[: index % len(pieces)])
    bounds = [(0, n, 1) for n in shape_of(x)]
    bounds[axis - 1] = (start, start + shape_of(node)[axis - 1], 1)
    return Operation("slice", node, (x,), settings={"bounds": tuple(bounds)})


def _identity(node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> fx.Node:
    return x


def _module_identity(node: fx.Node, module: nn.Module, x: fx.Node) -> fx.Node:
    return x


_FUNCTION_MODULES = (nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.LeakyReLU, nn.Mish)

#: A class comes before those it derives from.
_MODULES: list[tuple[Any, Callable[..., Operation | fx.Node]]] = [
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    ((nn.BatchNorm2d, nn.BatchNorm1d), _norm),
    (nn.ReLU, lambda n, m, x: _clamp(n, x, 0, None)),
    (nn.Hardtanh, lambda n, m, x: _clamp(n, x, m.min_val, m.max_val)),
    (nn.PReLU, _prelu),
    (_FUNCTION_MODULES, lambda n, m, x: _function(n, x, m)),
    (
        nn.MaxPool2d,
        lambda n, m, x: _max_pool(n, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices),
    ),
    (
        nn.AvgPool2d,
        lambda n, m, x: _average_pool(
            n, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        ),
    ),
    (nn.AdaptiveAvgPool2d, lambda n, m, x: _adaptive(n, x, m.output_size)),
    (nn.Flatten, lambda n, m, x: _reshape(n, x)),
    (nn.ZeroPad2d, _zero_pad),
    (nn.Upsample, _upsample),
    ((nn.Dropout, nn.Dropout2d, nn.Identity, StochasticDepth), _module_identity),
]

_CALLS: dict[Any, Callable[..., Operation | fx.Node]] = {
    **dict.fromkeys((torch.relu, functional.relu, "relu", "relu_"), lambda n, x, inplace=False: _clamp(n, x, 0, None)),
    functional.relu6: lambda n, x, inplace=False: _clamp(n, x, 0, 6),
    functional.hardtanh: lambda n, x, min_val=-1.0, max_val=1.0, inplace=False: _clamp(n, x, min_val, max_val),
    **dict.fromkeys(
        (torch.clamp, torch.clip, "clamp", "clip"), lambda n, x, min=None, max=None: _clamp(n, x, min, max)
    ),
    **dict.fromkeys(
        (
            *(functional.hardswish, functional.hardsigmoid, functional.silu, functional.gelu, functional.elu),
            *(functional.leaky_relu, functional.sigmoid, functional.tanh, functional.mish, torch.sigmoid, torch.tanh),
            *("sigmoid", "tanh"),
        ),
        _called,
    ),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _two("add")),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _two("multiply")),
    **dict.fromkeys((torch.cat, torch.concat), _concat),
    **dict.fromkeys((functional.max_pool2d, torch.max_pool2d), _max_pool),
    functional.avg_pool2d: _average_pool,
    functional.adaptive_avg_pool2d: _adaptive,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape), _reshape),
    **dict.fromkeys((torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze"), _reshape),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    functional.pad: _pad,
    functional.interpolate: _interpolate,
    operator.getitem: _getitem,
    **dict.fromkeys((functional.dropout, functional.dropout2d, stochastic_depth, "contiguous", "clone"), _identity),
}

#: Modules that are one operation wherever they are defined.
LEAVES: tuple[type, ...] = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, StochasticDepth)
