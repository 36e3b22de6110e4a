"""Dynamic programming against every combination."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.allocate import choose
from mvq.errors import ConfigError

OPTION = st.tuples(st.integers(0, 60), st.floats(0, 100))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4)


def slow_choice(costs, errors, limit):
    fitting = [
        sum(e[i] for e, i in zip(errors, picks, strict=True))
        for picks in itertools.product(*(range(len(c)) for c in costs))
        if sum(c[i] for c, i in zip(costs, picks, strict=True)) <= limit
    ]
    return min(fitting, default=None)


@given(layers=LAYERS, limit=st.integers(1, 200))
def test_choice_is_the_best(layers, limit):
    costs, errors = [[c for c, _ in row] for row in layers], [[e for _, e in row] for row in layers]
    best = slow_choice(costs, errors, limit)
    if best is None:
        with pytest.raises(ConfigError, match=f"{limit} bits are out of reach; the smallest choice takes"):
            choose(costs, errors, limit)
        return
    picks = choose(costs, errors, limit)
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= limit
    assert sum(e[i] for e, i in zip(errors, picks, strict=True)) == pytest.approx(best)


@given(layers=LAYERS, limit=st.integers(1, 200))
def test_large_costs_fit_and_lose_less_than_a_step_a_layer(layers, limit):
    scale = 10_007
    costs, errors = [[c * scale for c, _ in row] for row in layers], [[e for _, e in row] for row in layers]
    limit *= scale
    if slow_choice(costs, errors, limit) is None:
        return
    picks = choose(costs, errors, limit)
    assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= limit
    reserve = len(layers) * (1 + limit // (1 << 14))
    tighter = slow_choice(costs, errors, limit - reserve)
    got = sum(e[i] for e, i in zip(errors, picks, strict=True))
    assert tighter is None or got <= tighter + 1e-9


def test_options_that_may_not_be_taken():
    assert choose([[1, 5]], [[float("inf"), 3.0]], 5) == [1]
    with pytest.raises(ConfigError, match="the smallest choice takes 5"):
        choose([[1, 5]], [[float("inf"), 3.0]], 4)


def test_rounding_never_exceeds_the_budget():
    """A budget of 2^16 counts in steps of four bits; one bit above a step takes a whole one."""
    assert choose([[32769, 32768]] * 2, [[0.0, 1.0]] * 2, 1 << 16) == [1, 1]
