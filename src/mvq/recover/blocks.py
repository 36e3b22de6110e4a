"""A network cut into blocks that run one after the other, so that each can be repaired from kept activations.

A cut is possible behind a value that is all that later operations need: behind a residual join, not inside a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from mvq.errors import ModelError


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive operations of a traced network, or the whole network.

    Attributes:
        nodes: operations in order; empty for the whole network, which is then simply called.
        source: the value that enters.
        result: the value that leaves.
        names: of the modules inside.
    """

    names: tuple[str, ...]
    nodes: tuple[fx.Node, ...] = ()
    source: fx.Node | None = None
    result: fx.Node | None = field(default=None)

    def run(self, model: nn.Module, x: Any) -> Any:
        """Run these operations with the modules of `model`, which may be another network of the same structure."""
        if self.source is None or self.result is None:
            return model(x)
        values = {self.source: x}
        run_nodes(model, self.nodes, values)
        return map_arg(self.result, values.__getitem__)


def run_nodes(model: nn.Module, nodes: tuple[fx.Node, ...], values: dict[fx.Node, Any]) -> None:
    """Evaluate traced operations in order; results are added to `values`."""
    for node in nodes:
        args = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        target: Any = node.target
        if node.op == "call_module":
            values[node] = model.get_submodule(target)(*args, **kwargs)
        elif node.op == "call_function":
            values[node] = target(*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], target)(*args[1:], **kwargs)
        elif node.op == "get_attr":
            values[node] = _attribute(model, target)
        elif node.op == "output":
            values[node] = args[0]


def trace(model: nn.Module) -> fx.Graph:
    """The operations of a network with one input.

    Raises:
        ModelError: if torch.fx cannot trace it, or it has several inputs.
    """
    name = type(model).__name__
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise ModelError(
            f"model {name} cannot be traced by torch.fx: {type(error).__name__}: {error}; "
            f"leave out the part 'permute' to recover it as one block"
        ) from error
    required = [n for n in graph.nodes if n.op == "placeholder" and not n.args]
    if len(required) != 1:
        raise ModelError(f"model {name} has {len(required)} inputs, only networks of one image tensor are recovered")
    return graph


def cut(model: nn.Module, images: Tensor, *, block_layers: int, bytes_per_image: float) -> list[Block]:
    """Blocks of a network, in order.

    Args:
        model: plain or compressed, in `eval` mode.
        images: a few, `(n, C, H, W)`, to measure the borders with.
        block_layers: fewest convolutions and linear layers in a block, but for the last.
        bytes_per_image: most that a border may take in float16.

    Returns:
        Blocks whose borders are single tensors; the whole network as one block where it cannot be traced.
    """
    try:
        graph = trace(model)
    except ModelError:
        return [Block(tuple(name for name, _ in model.named_modules()))]
    _fold_shapes(graph, _values(model, graph, images), _values(model, graph, images[:1]))
    values = _values(model, graph, images)
    nodes = tuple(graph.nodes)
    source = next(n for n in nodes if n.op == "placeholder")
    body = tuple(n for n in nodes if n.op != "placeholder")
    sizes = {n: 2 * v.numel() / len(images) for n, v in values.items() if isinstance(v, Tensor)}
    blocks: list[Block] = []
    inside: list[fx.Node] = []
    n_layers = 0
    for i, node in enumerate(body):
        inside.append(node)
        n_layers += _is_layer(model, node)
        ends = node is body[-1]
        if not ends and n_layers >= block_layers and sizes.get(node, bytes_per_image + 1) <= bytes_per_image:
            ends = (_is_layer(model, body[i + 1]) or len(node.users) > 1) and _is_border(node, nodes)
        if ends:
            names = tuple(str(n.target) for n in inside if n.op == "call_module")
            blocks.append(Block(names, tuple(inside), source, node))
            source, inside, n_layers = node, [], 0
    return blocks


def _values(model: nn.Module, graph: fx.Graph, images: Tensor) -> dict[fx.Node, Any]:
    """Of all operations."""
    values: dict[fx.Node, Any] = {n: n.args[0] if n.args else images for n in graph.nodes if n.op == "placeholder"}
    with torch.no_grad():
        run_nodes(model, tuple(n for n in graph.nodes if n.op != "placeholder"), values)
    return values


def _fold_shapes(graph: fx.Graph, values: dict[fx.Node, Any], fewer: dict[fx.Node, Any]) -> None:
    """Put sizes that do not follow the number of images in the place of what computes them.

    A network that brings its output back to the size of its input asks for that at its end; the input would be needed
    up to there, and nothing could be cut.
    """
    for node, value in values.items():
        if isinstance(value, int | torch.Size) and value == fewer[node]:
            for user in tuple(node.users):
                user.args = map_arg(user.args, lambda n, node=node, value=value: value if n is node else n)
                user.kwargs = map_arg(user.kwargs, lambda n, node=node, value=value: value if n is node else n)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output", "call_module"))


def _is_layer(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), (nn.Conv2d, nn.Linear))


def _is_border(node: fx.Node, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether later operations need this value only."""
    here = nodes.index(node)
    before, after = set(nodes[:here]), set(nodes[here + 1 :])
    return not any(user in after for earlier in before for user in earlier.users)


def _attribute(model: nn.Module, target: str) -> Any:
    parent, _, name = target.rpartition(".")
    return getattr(model.get_submodule(parent), name)


def modules_of(block: Block, model: nn.Module) -> Mapping[str, nn.Module]:
    """The modules inside a block, by name."""
    return {name: model.get_submodule(name) for name in dict.fromkeys(block.names)}
