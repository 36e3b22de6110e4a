"""Dynamic programming against every combination."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.allocate.knapsack import choose, choose_within
from mvq.errors import ConfigError

OPTION = st.tuples(st.integers(0, 60), st.floats(0, 100))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4)


def total(rows, picks):
    return sum(row[i] for row, i in zip(rows, picks, strict=True))


def slow_choice(costs, errors, limit, work=None, most_work=0):
    fitting = [
        total(errors, picks)
        for picks in itertools.product(*(range(len(c)) for c in costs))
        if total(costs, picks) <= limit and (work is None or total(work, picks) <= most_work)
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
    assert total(costs, picks) <= limit
    assert total(errors, picks) == pytest.approx(best)


@given(
    layers=st.lists(st.lists(st.tuples(OPTION, st.integers(0, 30)), min_size=1, max_size=4), min_size=1, max_size=4),
    limit=st.integers(1, 200),
    most_work=st.integers(0, 90),
)
def test_nothing_of_as_little_work_is_better(layers, limit, most_work):
    costs, errors = ([[option[i] for option, _ in row] for row in layers] for i in range(2))
    work = [[w for _, w in row] for row in layers]
    if slow_choice(costs, errors, limit) is None:
        return
    if slow_choice(costs, errors, limit, work, most_work) is None:
        with pytest.raises(ConfigError, match=f"{most_work} multiply-accumulates are out of reach within {limit} bits"):
            choose_within(costs, errors, limit, work, most_work)
        return
    picks = choose_within(costs, errors, limit, work, most_work)
    assert total(costs, picks) <= limit
    assert total(work, picks) <= most_work
    assert total(errors, picks) == pytest.approx(slow_choice(costs, errors, limit, work, total(work, picks)))
    unbound = choose(costs, errors, limit)
    if total(work, unbound) <= most_work:
        assert picks == unbound


@given(layers=LAYERS, limit=st.integers(1, 200))
def test_large_costs_fit_and_lose_less_than_a_step_a_layer(layers, limit):
    scale = 10_007
    costs, errors = [[c * scale for c, _ in row] for row in layers], [[e for _, e in row] for row in layers]
    limit *= scale
    if slow_choice(costs, errors, limit) is None:
        return
    picks = choose(costs, errors, limit)
    assert total(costs, picks) <= limit
    reserve = len(layers) * (1 + limit // (1 << 14))
    tighter = slow_choice(costs, errors, limit - reserve)
    assert tighter is None or total(errors, picks) <= tighter + 1e-9


def test_options_that_may_not_be_taken():
    assert choose([[1, 5]], [[float("inf"), 3.0]], 5) == [1]
    with pytest.raises(ConfigError, match="the smallest choice takes 5"):
        choose([[1, 5]], [[float("inf"), 3.0]], 4)


def test_rounding_never_exceeds_the_budget():
    """A budget of 2^16 counts in steps of four bits; one bit above a step takes a whole one."""
    assert choose([[32769, 32768]] * 2, [[0.0, 1.0]] * 2, 1 << 16) == [1, 1]
