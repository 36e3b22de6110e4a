"""What an evaluation gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mvq.errors import DataError


@dataclass(frozen=True)
class Result:
    """One measured metric.

    Attributes:
        task: `classification`, `detection` or `segmentation`.
        metric: `top1`, `box_ap` or `miou`.
        value: in percent.
        n: images measured.
        extra: further metrics in percent, e.g. `top5`.
    """

    task: str
    metric: str
    value: float
    n: int
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Keys `task`, `metric`, `value`, `n`, then those of `extra`."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**named, **self.extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Read `to_dict`'s form.

        Raises:
            DataError: if a key is missing.
        """
        names = [f.name for f in dataclasses.fields(cls) if f.name != "extra"]
        missing = [name for name in names if name not in data]
        if missing:
            raise DataError(f"result: {', '.join(map(repr, missing))} missing; needed are {', '.join(names)}")
        return cls(**{k: data[k] for k in names}, extra={k: v for k, v in data.items() if k not in names})

    def metrics(self) -> dict[str, float]:
        """Every metric in percent by its name, the main one first."""
        return {self.metric: self.value, **self.extra}

    @property
    def standard_error(self) -> float:
        """Binomial standard error of a top-1 accuracy in percentage points; NaN for other metrics."""
        if self.metric != "top1":
            return math.nan
        share = self.value / 100
        return 100 * math.sqrt(share * (1 - share) / self.n)
