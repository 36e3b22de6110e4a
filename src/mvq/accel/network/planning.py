"""From single operations to steps: what a layer takes into its requantization, and which tensors share a scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from mvq.accel.network.arithmetic import Padding
from mvq.accel.network.operations import Operation

#: Their results have a scale of their own.
_SCALED = ("conv", "linear", "norm", "add", "multiply", "average_pool", "function", "concat")
#: Values stay as they are and only move.
_MOVING = ("concat", "slice", "reshape", "transpose", "expand", "pad")
#: They end in sums, which a layer at the end of a network hands out as they are.
_SUMMING = ("conv", "linear", "average_pool")


@dataclass(eq=False)
class Step:
    """An operation with what follows it in the same pass.

    Attributes:
        operation: the first.
        result: value that leaves.
        inputs: values that enter.
        norm: batch norm behind a layer.
        low: real lower bound of the result, from a ReLU.
        high: real upper bound, from a ReLU6.
        padding: zeros in front of a convolution, beside its own.
        is_real: whether the result is a real number, on its way out.
        is_sum: whether it is not requantized.
    """

    operation: Operation
    result: fx.Node
    inputs: tuple[fx.Node, ...]
    norm: nn.BatchNorm2d | nn.BatchNorm1d | None = None
    low: float = -math.inf
    high: float = math.inf
    padding: Padding = (0, 0, 0, 0)
    is_real: bool = False
    is_sum: bool = False

    @property
    def kind(self) -> str:
        """Of its first operation."""
        return self.operation.kind


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a network.

    Attributes:
        source: the images.
        steps: in the order they run.
        results: of the network.
        scale_of: for each int8 tensor the value whose range gives its scale.
    """

    source: fx.Node
    steps: tuple[Step, ...]
    results: tuple[fx.Node, ...]
    scale_of: dict[fx.Node, fx.Node] = field(default_factory=dict)


def plan(source: fx.Node, operations: Sequence[Operation], results: Sequence[fx.Node]) -> Plan:
    """Join operations to steps and decide on scales.

    Batch norm joins the layer before it, a ReLU what it follows, zero padding the convolution after it, wherever
    nothing else reads the value between. Operations at the end that only move values work on real numbers, so that
    results of different ranges need not share a scale.
    """
    steps = _joined([op for op in operations if op.node in _needed(operations, results)], results)
    _mark_end(steps, results)
    return Plan(source, tuple(steps), tuple(results), _scales(source, steps, results))


def _needed(operations: Sequence[Operation], results: Sequence[fx.Node]) -> set[fx.Node]:
    needed = set(results)
    for operation in reversed(operations):
        if operation.node in needed:
            needed.update(operation.inputs)
    return needed


def _joined(operations: Sequence[Operation], results: Sequence[fx.Node]) -> list[Step]:
    readers: dict[fx.Node, list[Operation]] = defaultdict(list)
    for operation in operations:
        for node in operation.inputs:
            readers[node].append(operation)

    def only_reader(node: fx.Node) -> Operation | None:
        return readers[node][0] if len(readers[node]) == 1 and node not in results else None

    pads = {op.node: op for op in operations if op.kind == "pad" and _joins(op, only_reader(op.node))}
    taken: set[fx.Node] = set(pads)
    steps = []
    for operation in operations:
        if operation.node in taken:
            continue
        step = Step(operation, operation.node, operation.inputs)
        steps.append(step)
        if operation.kind == "conv" and operation.inputs[0] in pads:
            pad = pads[operation.inputs[0]]
            (top, bottom), (left, right) = pad.settings["widths"][1:]
            step.inputs, step.padding = pad.inputs, (top, left, bottom, right)
        if operation.kind in _SCALED and operation.kind not in ("concat", "function"):
            while (after := only_reader(step.result)) is not None and _absorb(step, after):
                taken.add(after.node)
    return steps


def _joins(pad: Operation, reader: Operation | None) -> bool:
    channels, *edges = pad.settings["widths"]
    return (
        reader is not None
        and reader.kind == "conv"
        and channels == (0, 0)
        and all(n >= 0 for pair in edges for n in pair)
    )


def _absorb(step: Step, after: Operation) -> bool:
    clamped = math.isfinite(step.low) or math.isfinite(step.high)
    if after.kind == "norm" and step.kind in ("conv", "linear") and step.norm is None and not clamped:
        step.norm = after.module
    elif after.kind == "clamp":
        step.low, step.high = max(step.low, after.settings["low"]), min(step.high, after.settings["high"])
    else:
        return False
    step.result = after.node
    return True


def _readers(steps: Sequence[Step]) -> dict[fx.Node, list[Step]]:
    readers: dict[fx.Node, list[Step]] = defaultdict(list)
    for step in steps:
        for node in step.inputs:
            readers[node].append(step)
    return readers


def _mark_end(steps: Sequence[Step], results: Sequence[fx.Node]) -> None:
    """Find the steps whose result is real or an unfinished sum."""
    readers = _readers(steps)
    for step in reversed(steps):
        leaves = all(reader.is_real and reader.kind in _MOVING for reader in readers[step.result])
        free = not (math.isfinite(step.low) or math.isfinite(step.high))
        step.is_real = leaves and step.kind in (*_MOVING, "function")
        step.is_sum = leaves and step.kind in _SUMMING and free


def _scales(source: fx.Node, steps: Sequence[Step], results: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The value whose range gives the scale of each int8 tensor."""
    parent: dict[fx.Node, fx.Node] = {source: source}
    makers = {step.result: step for step in steps}
    readers = _readers(steps)

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    whole = [step for step in steps if not (step.is_real or step.is_sum)]
    for step in whole:
        parent[step.result] = step.result if step.kind in _SCALED else find(step.inputs[0])
    for step in whole:
        for node in step.inputs if step.kind == "concat" else ():
            maker = makers.get(node)
            alone = len(readers[node]) == 1 and node not in results
            # Straight to the scale it will need: no second rounding, and no pass over the tensor to rescale it.
            if maker is not None and alone and maker.kind in _SCALED and maker.kind != "concat":
                parent[node] = find(step.result)
    return {node: find(node) for node in parent}
