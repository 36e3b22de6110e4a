"""Statements of sparsity: what a prior machine finds in a network, in its own terms."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from mvq.errors import ConfigError

#: One value for all layers but the first, which is dense, or one for each layer.
Share = float | tuple[float, ...]

#: Where the densities of pruned networks come from.
HAN = "Han et al., NIPS 2015, tables of AlexNet and VGG-16"
#: Share of each layer's input that is not zero: the image, then what the layer before makes.
ACTIVATIONS: dict[str, Share] = {
    "alexnet": (1.0, 0.88, 0.52, 0.37, 0.40, 0.34, 0.36, 0.40),
    "vgg16": (1.0, 0.53, 0.89, 0.80, 0.81, 0.68, 0.70, 0.64, 0.51, 0.45, 0.34, 0.32, 0.29, 0.19, 0.38, 0.42),
    #: Assumed.
    "resnet18": 0.5,
}


class Bounds(NamedTuple):
    """Of a value of a statement.

    Attributes:
        low: least; excluded unless `low_allowed`.
        high: most.
        dense: what a dense layer has.
        low_allowed: whether the least value itself may be stated.
    """

    low: float
    high: float
    dense: float
    low_allowed: bool = False

    def hold(self, value: object) -> bool:
        """Whether a value is a number within."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (self.low <= value if self.low_allowed else self.low < value) and value <= self.high

    def __str__(self) -> str:
        return f"{'[' if self.low_allowed else '('}{self.low:g}, {self.high:g}]"


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What every statement has.

    A single value holds for all layers but the first, which works on the image with weights that are rarely pruned; a
    tuple has one for each layer.

    Attributes:
        source: of the values.

    Raises:
        ConfigError: listing every fault at once.
    """

    #: Of each value, by field.
    BOUNDS: ClassVar[dict[str, Bounds]] = {}

    source: str = "given"

    def __post_init__(self) -> None:
        faults = []
        for key, bounds in self.BOUNDS.items():
            stated = getattr(self, key)
            values = stated if isinstance(stated, tuple) else (stated,)
            if not values:
                faults.append(f"{key} has no value; give one, or one for each layer")
            wrong = [value for value in values if not bounds.hold(value)]
            if wrong:
                faults.append(f"{key}={', '.join(map(repr, wrong))} is not in {bounds}")
        if faults:
            raise ConfigError("\n".join(f"{type(self).__name__}: {fault}" for fault in faults))

    def faults_for(self, n_layers: int) -> list[str]:
        """Why it does not describe so many layers; empty if it does."""
        return [
            f"{key} has {len(value)} values, the network {n_layers} layers; give one, or one for each layer"
            for key in self.BOUNDS
            if isinstance(value := getattr(self, key), tuple) and len(value) != n_layers
        ]

    def at(self, i: int) -> Self:
        """The statement of layer i alone."""
        values = {key: self.value(key, i) for key in self.BOUNDS}
        return dataclasses.replace(self, **values)

    def value(self, key: str, i: int = 1) -> float:
        """A value of layer i; of a statement of one layer, its only one."""
        stated = getattr(self, key)
        if isinstance(stated, tuple):
            return stated[i]
        return self.BOUNDS[key].dense if i == 0 else stated

    @classmethod
    def dense(cls) -> Self:
        """Nothing is sparse."""
        return cls(source="dense", **{key: bounds.dense for key, bounds in cls.BOUNDS.items()})
