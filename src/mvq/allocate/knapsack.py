"""The multiple-choice knapsack: one option for each layer, least error within budgets of bits and of work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mvq.errors import ConfigError

#: Bits are counted in steps of at most this share of the budget.
_STEPS = 1 << 14
#: Doublings until the price of work is high enough, and halvings of the range it is then sought in.
_DOUBLINGS, _HALVINGS = 80, 24


def choose_within(
    costs: Sequence[Sequence[int]],
    errors: Sequence[Sequence[float]],
    budget: int,
    work: Sequence[Sequence[int]],
    most_work: int,
) -> list[int]:
    """`choose` with a second budget, by a price on work (Lagrange multiplier).

    Nothing that takes as little work as the result has less error. Work between that and `most_work` may be left where
    no price leads to it.

    Args:
        costs: as `choose`.
        errors: as `choose`.
        budget: as `choose`.
        work: of the same options.
        most_work: of all layers together.

    Returns:
        The option of each layer.

    Raises:
        ConfigError: as `choose`; if no choice within the bits takes so little work.
    """

    def at(price: float) -> tuple[list[int], int]:
        priced = [[e + price * w for e, w in zip(*layer, strict=True)] for layer in zip(errors, work, strict=True)]
        options = choose(costs, priced, budget)
        return options, sum(layer[i] for layer, i in zip(work, options, strict=True))

    free, used = at(0.0)
    if used <= most_work:
        return free
    total = sum(e[i] for e, i in zip(errors, free, strict=True))
    price = (total or 1.0) / used
    low, found = 0.0, free
    for _ in range(_DOUBLINGS):
        found, used = at(price)
        if used <= most_work:
            break
        low, price = price, 2 * price
    else:
        raise ConfigError(
            f"allocate: {most_work:,} multiply-accumulates are out of reach within {budget} bits; {used:,} are not"
        )
    for _ in range(_HALVINGS):
        middle = (low + price) / 2
        options, used = at(middle)
        if used <= most_work:
            price, found = middle, options
        else:
            low = middle
    return found


def choose(costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], budget: int) -> list[int]:
    """Dynamic programming over the budget in equal steps.

    Exact where the budget is below 2^14; else costs are rounded up to a step of 1/2^14 of it, so that the result always
    fits and is the best one for a budget smaller by at most one step a layer.

    Args:
        costs: bits of each option of each layer.
        errors: of the same options, not negative; infinite for an option that may not be taken.
        budget: most bits in all.

    Returns:
        The option of each layer.

    Raises:
        ConfigError: if the cheapest options are above the budget.
    """
    smallest = sum(
        min(c for c, e in zip(*layer, strict=True) if np.isfinite(e)) for layer in zip(costs, errors, strict=True)
    )
    if smallest > budget:
        raise ConfigError(f"allocate: {budget} bits are out of reach; the smallest choice takes {smallest}")
    step = max(1, -(-budget // _STEPS))
    best = _solve(costs, errors, budget, step)
    if best is None:
        # Rounding alone made it too large: the cheapest option of each layer fits.
        return [
            min(range(len(c)), key=lambda i: (not np.isfinite(e[i]), c[i], e[i]))
            for c, e in zip(costs, errors, strict=True)
        ]
    return best


def _solve(
    costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], budget: int, step: int
) -> list[int] | None:
    size = budget // step + 1
    least = np.zeros(size)
    taken: list[NDArray[np.intp]] = []
    for layer_costs, layer_errors in zip(costs, errors, strict=True):
        table = np.full((len(layer_costs), size), np.inf)
        for row, cost, error in zip(table, layer_costs, layer_errors, strict=True):
            used = -(-cost // step)
            if used < size:
                row[used:] = least[: size - used] + error
        taken.append(table.argmin(0))
        least = table.min(0)
    if not np.isfinite(least[-1]):
        return None
    left, chosen = size - 1, []
    for options, layer_costs in zip(reversed(taken), reversed(costs), strict=True):
        chosen.append(int(options[left]))
        left -= -(-layer_costs[chosen[-1]] // step)
    return chosen[::-1]
