"""LSQ against its equations."""

import math

import pytest
import torch
from rivals import N_WEIGHTS, RECIPE, check_rival, compressed, net

from mvq.baselines.uniform import TERNARY, WIDTHS, LearnedStep, Levels, LSQWeight, uniform_, widths_for
from mvq.errors import ConfigError


@pytest.mark.parametrize(("bits", "low", "high"), [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127)])
def test_levels_of_the_paper(bits: int, low: int, high: int) -> None:
    assert Levels.of_bits(bits) == Levels(low, high)
    assert Levels.of_bits(bits).bits((10, 7)) == 70 * bits + 32


def test_three_levels_take_a_byte_for_five() -> None:
    assert TERNARY.bits((10, 7)) == 14 * 8 + 32
    assert TERNARY.bits((71, 1)) == 15 * 8 + 32
    assert 3**5 <= 2**8


@pytest.mark.parametrize("levels", WIDTHS)
def test_step_starts_as_the_paper_says(levels: Levels) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5)
    form = LSQWeight("layer", RECIPE, weight, levels)
    assert float(form.step().detach()) == pytest.approx(2 * float(weight.abs().mean()) / math.sqrt(levels.high))


@pytest.mark.parametrize("levels", WIDTHS)
def test_equations_1_2_3_and_5(levels: Levels) -> None:
    """Value by value, with the three cases of eq. 3."""
    step, low, high = 0.3, levels.low, levels.high
    values = torch.tensor([low - 0.7, low + 0.3, -0.4, 0.2, 0.7, high - 0.2, high + 0.1, high + 5]) * step
    for v in values.tolist():
        x = v / step
        if x <= low:
            code, by_step, passes = low, low, 0
        elif x >= high:
            code, by_step, passes = high, high, 0
        else:
            code, by_step, passes = round(x), -x + round(x), 1
        leaf = torch.tensor([v], requires_grad=True)
        log = torch.zeros((), requires_grad=True)
        out: torch.Tensor = LearnedStep.apply(leaf, torch.tensor(step), log, levels)  # type: ignore[assignment]
        assert out.item() == pytest.approx(step * code)
        (3 * out).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.item() == 3 * passes
        assert log.grad is not None
        assert log.grad.item() == pytest.approx(3 * by_step / math.sqrt(1 * high), rel=1e-4, abs=1e-5)


def test_gradient_of_the_step_is_scaled_by_the_number_of_weights() -> None:
    values = torch.full((50,), 0.2)
    log = torch.zeros((), requires_grad=True)
    LearnedStep.apply(values, torch.tensor(1.0), log, Levels(-8, 7)).sum().backward()  # type: ignore[union-attr]
    assert log.grad is not None
    assert log.grad.item() == pytest.approx(50 * -0.2 / math.sqrt(50 * 7))


def test_widths_meet_a_size_largest_layers_first() -> None:
    shapes = {"a": (10, 100), "b": (10, 10), "c": (10, 50)}
    two, three = Levels.of_bits(2), Levels.of_bits(3)
    base = sum(two.bits(s) for s in shapes.values())
    assert widths_for(shapes, base) == dict.fromkeys(shapes, two)
    assert widths_for(shapes, base + 1000) == {"a": three, "b": two, "c": two}
    assert widths_for(shapes, base + 600) == {"a": two, "b": three, "c": three}
    assert widths_for(shapes, 100 * base) == dict.fromkeys(shapes, Levels.of_bits(8))


@pytest.mark.parametrize("bits", [1.7, 2.9])
def test_trains_to_what_it_stores(bits: float) -> None:
    model = check_rival(uniform_, bits)
    for form, weight in compressed(model):
        assert isinstance(form, LSQWeight)
        count = form.levels.high - form.levels.low + 1
        codes = weight / float(form.step().detach())
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        assert len(weight.unique()) <= count
        assert form.stored_bits() == form.levels.bits(weight.shape)


def test_error() -> None:
    smallest = sum(TERNARY.bits(shape) for shape in ((48, 16, 3, 3), (40, 48, 1, 1), (10, 40)))
    with pytest.raises(ConfigError) as caught:
        uniform_(net(), RECIPE, N_WEIGHTS)
    assert str(caught.value) == (
        f"uniform: {N_WEIGHTS} bits are out of reach; the nearest reachable size is {smallest} bits, so give a larger "
        f"target_bits"
    )
