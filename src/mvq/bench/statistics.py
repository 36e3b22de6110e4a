"""From rows to figures: spread over seeds, and paired comparison image by image."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mvq.bench.rows import Row, Rows


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; NaN for the latter with one seed."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Paired:
    """A method minus the reference on the same images and seeds, in percentage points.

    Attributes:
        difference: mean.
        standard_error: over images, each with its difference averaged over the seeds, so that seeds sharing
            an image do not count as independent.
        p_value: of the exact McNemar test over all pairs (image, seed) that only one of the two gets right;
            it takes these for independent.
        n_seeds: seeds that both have.
    """

    difference: float
    standard_error: float
    p_value: float
    n_seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value for so many discordant pairs (McNemar, 1947; binomial with one half)."""
    n, low = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(low + 1))
    return min(1.0, 2 * tail / 2**n)


def paired(table: Rows, rows: Sequence[Row], reference: Sequence[Row], name: str) -> Paired | None:
    """Compare a method's rows with the reference's of the same network and size on an evaluation set.

    Returns:
        None where no seed has the per-image results of both.
    """
    other = {row["seed"]: row for row in reference}
    differences = []
    for row in rows:
        if row["seed"] in other:
            a, b = table.correct(row, name), table.correct(other[row["seed"]], name)
            if a is not None and b is not None and len(a) == len(b):
                differences.append(a.astype(np.int8) - b.astype(np.int8))
    if not differences:
        return None
    every = np.stack(differences)
    by_image = every.mean(0)
    error = float(by_image.std(ddof=1)) / math.sqrt(len(by_image)) if len(by_image) > 1 else math.nan
    p_value = mcnemar(int((every > 0).sum()), int((every < 0).sum()))
    return Paired(100 * float(by_image.mean()), 100 * error, p_value, len(differences))
