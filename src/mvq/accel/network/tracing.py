"""A torch network as a list of operations on tensors of known shape.

`torch.fx` alone traces without shapes, so it stops where a network asks for one. Here each traced value knows its
shape: those of module outputs come from one run with hooks, everything between runs on the meta device. What depends on
shapes only is a plain number in the traced graph.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from mvq.errors import ModelError


class _Value(fx.Proxy):
    """A proxy that knows its value, on the meta device."""

    value: Any = None

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def size(self, dim: int | None = None) -> Any:
        return self.value.shape if dim is None else self.value.shape[dim]

    def dim(self) -> int:
        return self.value.ndim

    def numel(self) -> int:
        return self.value.numel()


class _ShapeTracer(fx.Tracer):
    def __init__(self, images: Tensor, leaves: tuple[type, ...], outputs: dict[nn.Module, list[Any]]) -> None:
        super().__init__()
        self._images = images
        self._leaves = leaves
        self._outputs = {module: iter(values) for module, values in outputs.items()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m, self._leaves)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        given = map_aggregate(args, _known), map_aggregate(kwargs, _known)
        proxy.value = self._evaluate(kind, target, *given)
        proxy.node.meta["value"] = proxy.value
        if isinstance(proxy.value, (tuple, list)):
            # Pieces of a tensor: a plain tuple, for whatever Python does with it.
            return tuple(operator.getitem(proxy, i) for i in range(len(proxy.value)))
        return proxy

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return args[0] if args else self._images.to("meta")
        if kind == "call_module":
            return next(self._outputs[self.root.get_submodule(target)])
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "get_attr":
            parent, _, name = target.rpartition(".")
            module = self.root.get_submodule(parent)
            # Not by getattr, which gives proxies while a network is traced.
            held = {**module.__dict__, **module._parameters, **module._buffers}
            return held[name].to("meta")
        return None


def _known(value: Any) -> Any:
    return value.value if isinstance(value, _Value) else value


def is_leaf(module: nn.Module, leaves: tuple[type, ...]) -> bool:
    """Whether a module is one operation: torch's own, but for containers, or an instance of a class given."""
    ours = isinstance(module, leaves)
    return ours or (type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential))


def trace(model: nn.Module, images: Tensor, leaves: tuple[type, ...]) -> fx.Graph:
    """The operations of a network with one input; the result of each is in `node.meta["value"]`, on the meta device.

    Args:
        model: in evaluation mode.
        images: `(N, C, H, W)`; their number is a constant of the graph where the network asks for it.
        leaves: classes of modules that are one operation, beside torch's own.

    Raises:
        ModelError: if it cannot be traced or has several inputs.
    """
    outputs: dict[nn.Module, list[Any]] = defaultdict(list)

    def note(module: nn.Module, args: Any, result: Any) -> None:
        outputs[module].append(map_aggregate(result, lambda x: x.to("meta") if isinstance(x, Tensor) else x))

    hooks = [m.register_forward_hook(note) for m in model.modules() if is_leaf(m, leaves)]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    name = type(model).__name__
    try:
        with torch.no_grad():
            graph = _ShapeTracer(images, leaves, outputs).trace(model)
    except Exception as error:
        raise ModelError(
            f"model {name} cannot be traced: {type(error).__name__}: {error}; its forward must not branch on values "
            f"of tensors"
        ) from error
    required = [n for n in graph.nodes if n.op == "placeholder" and not n.args]
    if len(required) != 1:
        raise ModelError(f"model {name} has {len(required)} inputs; give a network of one tensor of images")
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    return graph


def run(model: nn.Module, graph: fx.Graph, images: Tensor, observe: Callable[[fx.Node, Tensor], None]) -> None:
    """Run traced operations on images and show each result that is a tensor."""

    class Observing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                observe(n, result)
            return result

    with torch.no_grad():
        Observing(fx.GraphModule(model, graph)).run(images)
