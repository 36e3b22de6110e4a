"""Output channels put in the order in which N:M pruning loses least, without changing what the network computes.

The order of channels between layers is free: what one layer permutes at its outputs the next undoes at its inputs
(Pool and Yu, NeurIPS 2021; PQF, 2021). Layers are tied into *spaces* of channels: batch norm, activations, pooling and
depth-wise convolutions keep the space of their input, a residual join makes two spaces one. The order of a space
that reaches the network's output, or an operation not known here, is fixed.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from mvq.nn.layers import check_ready, dense_weight, plan
from mvq.recipe import LayerRecipe, Recipe
from mvq.recover.blocks import trace

_NORMS = nn.modules.batchnorm._BatchNorm
_CARRIERS = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.ELU,
    nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, nn.Upsample,
)  # fmt: skip
_CARRIER_FUNCTIONS = {
    torch.relu, torch.sigmoid, torch.tanh, nn.functional.relu, nn.functional.relu6, nn.functional.silu,
    nn.functional.hardswish, nn.functional.hardsigmoid, nn.functional.leaky_relu, nn.functional.gelu,
    nn.functional.dropout, nn.functional.max_pool2d, nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d,
    nn.functional.adaptive_max_pool2d, nn.functional.interpolate,
}  # fmt: skip
_CARRIER_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone"}
_JOINS = {operator.add, operator.iadd, operator.mul, torch.add, torch.mul}
_MAX_COLUMNS = 512


@dataclass(eq=False)
class Space:
    """Channels in one order.

    Attributes:
        size: channels.
        fixed: whether their order has to stay.
        makers: modules with an output row for each channel: convolutions, linear layers, batch norm.
        users: modules with input columns for the channels, and the first column.
    """

    size: int
    fixed: bool = False
    makers: list[str] = field(default_factory=list)
    users: list[tuple[str, int]] = field(default_factory=list)
    parent: Space | None = None

    def root(self) -> Space:
        """The space that this one was tied to; itself where it was to none."""
        return self if self.parent is None else self.parent.root()


Layout = tuple[Space, ...]


class _Tracker:
    """Follows channel orders through a traced network."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.spaces: list[Space] = []
        self.layouts: dict[fx.Node, Layout | None] = {}
        nodes = list(trace(model).nodes)
        calls = Counter(node.target for node in nodes if node.op == "call_module")
        # The rows of such a layer meet several columns; it is left alone, and so is all that touches it.
        self.repeated = {target for target, n in calls.items() if n > 1}
        for node in nodes:
            self.layouts[node] = self._visit(node)

    def roots(self) -> list[Space]:
        """Distinct spaces with everything tied to them."""
        for space in self.spaces:
            root = space.root()
            if root is not space:
                root.fixed |= space.fixed
                root.makers += space.makers
                root.users += space.users
        return [s for s in self.spaces if s.parent is None]

    def _visit(self, node: fx.Node) -> Layout | None:
        if node.op == "call_module":
            return self._module(str(node.target), self.model.get_submodule(str(node.target)), node)
        inputs = [self.layouts[n] for n in node.all_input_nodes]
        one = inputs[0] if len(inputs) == 1 else None
        if node.op == "call_function" and node.target in _CARRIER_FUNCTIONS and one is not None:
            return one
        if node.op == "call_method" and node.target in _CARRIER_METHODS and one is not None:
            return one
        if node.op == "call_function" and node.target in _JOINS:
            return self._join(inputs)
        if node.op == "call_function" and node.target is torch.cat and _argument(node, 1, "dim", 0) == 1:
            if all(layout is not None for layout in inputs):
                return tuple(space for layout in inputs if layout is not None for space in layout)
        if one is not None and _drops_pixels(node):
            return one
        self._fix(inputs)
        return None

    def _module(self, name: str, module: nn.Module, node: fx.Node) -> Layout | None:
        inputs = [self.layouts[n] for n in node.all_input_nodes]
        layout = inputs[0] if len(inputs) == 1 else None
        again = name in self.repeated
        if layout is not None and (isinstance(module, _CARRIERS) or _is_flatten(module)):
            return layout
        if layout is not None and isinstance(module, _NORMS) and not again:
            return self._keep(name, module.num_features, layout)
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1:
            if layout is not None and not again:
                return self._keep(name, module.out_channels, layout)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and not again and getattr(module, "groups", 1) == 1:
            if layout is not None:
                self._use(name, module, layout)
            space = Space(module.weight.shape[0], makers=[name])
            self.spaces.append(space)
            return (space,)
        self._fix(inputs)
        return None

    def _keep(self, name: str, size: int, layout: Layout) -> Layout | None:
        if len(layout) == 1 and layout[0].size == size:
            layout[0].makers.append(name)
            return layout
        self._fix([layout])
        return None

    def _use(self, name: str, module: nn.Module, layout: Layout) -> None:
        if sum(space.size for space in layout) != module.weight.shape[1]:  # type: ignore[union-attr,operator]
            self._fix([layout])
            return
        start = 0
        for space in layout:
            space.users.append((name, start))
            start += space.size

    def _join(self, inputs: list[Layout | None]) -> Layout | None:
        first = inputs[0]
        if first is None or any(x is None or [s.size for s in x] != [s.size for s in first] for x in inputs):
            self._fix(inputs)
            return None
        for other in inputs[1:]:
            for a, b in zip(first, other or (), strict=True):
                if a.root() is not b.root():
                    b.root().parent = a.root()
        return first

    def _fix(self, layouts: Iterable[Layout | None]) -> None:
        for layout in layouts:
            for space in layout or ():
                space.fixed = True


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _drops_pixels(node: fx.Node) -> bool:
    """Mean over the pixels, or a flattening; if pixels remain, the next layer's width tells, and the order is fixed."""
    if node.target in (torch.mean, "mean"):
        axes = _argument(node, 1, "dim", None)
        return isinstance(axes, (tuple, list)) and sorted(a % 4 for a in axes) == [2, 3]
    return node.target in (torch.flatten, "flatten") and _argument(node, 1, "start_dim", 0) == 1


def _is_flatten(module: nn.Module) -> bool:
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)


@torch.no_grad()
def permute_(model: nn.Module, recipe: Recipe, *, rounds: int = 200, seed: int = 0) -> int:
    """Reorder channels so that the recipe's patterns keep the most squared magnitude.

    Args:
        model: dense, in `eval` mode; its weights, biases and batch norms are changed in place. It computes what it
            did but for rounding.
        recipe: whose patterns count.
        rounds: of channel swaps, see `best_order`.
        seed: of the search.

    Returns:
        How many spaces of channels got another order.

    Raises:
        ModelError: if torch.fx cannot trace the model, or a weight cannot be compressed.
        WeightError: on NaN or infinite weights.
    """
    planned = plan(model, recipe)
    check_ready(model, planned)
    layers = {name: layer for name, _, layer in planned}
    n_changed = 0
    for i, space in enumerate(_Tracker(model).roots()):
        order = None if space.fixed else _order(model, space, layers, rounds, seed + i)
        if order is not None:
            n_changed += 1
            reorder_(model, space, order)
    return n_changed


def free_spaces(model: nn.Module) -> list[Space]:
    """The spaces of a network whose order may be changed.

    Raises:
        ModelError: if torch.fx cannot trace the model.
    """
    return [space for space in _Tracker(model).roots() if not space.fixed]


@torch.no_grad()
def reorder_(model: nn.Module, space: Space, order: Tensor) -> None:
    """Put the channels of a free space in another order; the network computes what it did but for rounding.

    Args:
        model: dense; changed in place.
        space: of this model.
        order: `(size,)` int64, old position of each new channel.
    """
    for name in space.makers:
        _reorder_rows(model.get_submodule(name), order)
    for name, start in space.users:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight[:, start : start + space.size] = weight[:, start + order]


def _order(model: nn.Module, space: Space, layers: Mapping[str, LayerRecipe], rounds: int, seed: int) -> Tensor | None:
    """The best order of a space, None where nothing in it is pruned or nothing is gained."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    for name in space.makers:
        layer = layers.get(name)
        if layer is not None and layer.treatment == "compress" and not layer.pattern.is_dense:
            key = (layer.pattern.keep, layer.pattern.group)
            found.setdefault(key, []).append(dense_weight(model.get_submodule(name)).float().square().flatten(1))
    if not found:
        return None
    # Layers of one space with different patterns are rare: the one with more weights decides.
    (keep, group), scores = max(found.items(), key=lambda item: sum(s.numel() for s in item[1]))
    return best_order(torch.cat(scores, 1), keep, group, rounds=rounds, seed=seed)


def best_order(scores: Tensor, keep: int, group: int, *, rounds: int, seed: int) -> Tensor | None:
    """Order of channels whose N:M mask keeps the largest sum of scores, by greedy swaps.

    In each round the groups are paired at random, and each pair makes its best exchange of two channels if that gains.

    Args:
        scores: `(channels, columns)`, squared weights; of many columns an even sample is used.
        keep: N.
        group: M.
        rounds: of pairings.
        seed: of the pairings.

    Returns:
        A permutation of the channels, or None where the given order was not improved. Channels that fill no group of M
        stay at the end.
    """
    n_groups = scores.shape[0] // group
    if n_groups < 2 or rounds == 0:
        return None
    columns = torch.linspace(0, scores.shape[1] - 1, min(scores.shape[1], _MAX_COLUMNS)).long()
    scores = scores[:, columns]
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(scores.shape[0])
    n_swaps = 0
    for _ in range(rounds):
        pairs = torch.randperm(n_groups, generator=generator)[: n_groups // 2 * 2].reshape(2, -1)
        slots = pairs[:, :, None] * group + torch.arange(group)
        n_swaps += _swap_(order, slots, scores, keep)
    return order if n_swaps else None


def _swap_(order: Tensor, slots: Tensor, scores: Tensor, keep: int) -> int:
    """The best exchange in each pair of groups; `slots` is `(2, pairs, group)`."""
    left, right = scores[order[slots[0]]], scores[order[slots[1]]]
    best = _kept(left, keep) + _kept(right, keep)
    # Only true gains count, or rounding could swap back and forth.
    best = best * (1 + 1e-6)
    choice = torch.full((slots.shape[1],), -1)
    group = slots.shape[2]
    for i in range(group):
        for j in range(group):
            a, b = left.clone(), right.clone()
            a[:, i], b[:, j] = right[:, j], left[:, i]
            gain = _kept(a, keep) + _kept(b, keep)
            better = gain > best
            best, choice = torch.where(better, gain, best), torch.where(better, i * group + j, choice)
    rows = (choice >= 0).nonzero()[:, 0]
    one, two = slots[0, rows, choice[rows] // group], slots[1, rows, choice[rows] % group]
    order[one], order[two] = order[two], order[one]
    return len(rows)


def _kept(scores: Tensor, keep: int) -> Tensor:
    """Sum of the `keep` largest of each column, `(pairs, group, columns)` to `(pairs,)`."""
    best = scores.amax(1) if keep == 1 else scores.topk(keep, 1, sorted=False).values.sum(1)
    return best.sum(1)


def _reorder_rows(module: nn.Module, order: Tensor) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.ndim:
            tensor.copy_(tensor[order].clone())
