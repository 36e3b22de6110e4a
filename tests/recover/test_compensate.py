"""Pruning and assignment with error feedback, against slow references."""

import numpy as np
import pytest
import torch
from torch import nn

import mvq
from mvq.cluster import assign
from mvq.grouping import to_subvectors
from mvq.nn.layers import form_of
from mvq.patterns import Pattern
from mvq.prune import complete_mask, magnitude_mask, weight_mask
from mvq.recover.compensate import assign_compensated_, least_squares_target, prune_compensated, refit, sweep
from mvq.recover.statistics import Moments, input_columns


def conv(*arguments, **options):
    """A convolution whose weights are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*arguments, **options)


def second_moment(groups: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 5 * n, n, generator=generator) @ torch.randn(n, n, generator=generator)
    return x.mT @ x / (5 * n)


def output_error(weight: torch.Tensor, target: torch.Tensor, second: torch.Tensor) -> float:
    """Over rows `(groups, rows, c)`."""
    error = weight - target
    return float((error @ second * error).sum())


def correlated(layer: nn.Module, n: int = 60, max_columns: int = 10**6) -> Moments:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(n, layer.in_channels, 3, 3, generator=generator)
    x = nn.functional.interpolate(coarse, (8, 8), mode="bilinear").relu()
    x = x + x.roll(1, 1)
    columns = input_columns(layer, x)
    moments = Moments(columns.shape[2], max_columns)
    moments.add(columns)
    return moments


def error_of(layer: nn.Module, weight: torch.Tensor, target: torch.Tensor, moments: Moments) -> float:
    groups = layer.groups
    error = (weight - target).reshape(groups, layer.out_channels // groups, -1)
    return sum(
        float((error[:, :, p] @ m * error[:, :, p]).sum()) for p, m in zip(moments.slices, moments.second, strict=True)
    )


def test_sweep_passes_errors_on_as_the_inverse_says():
    """Against the textbook step: `w_rest -= e_j / P_jj * P_j,rest` with P the inverse over the open columns."""
    second = second_moment(2, 9)
    weight = torch.randn(2, 4, 9)
    seen = []

    def rounded(j, column):
        seen.append(column.clone())
        return column.round()

    done = sweep(weight, second, rounded)
    for g in range(2):
        w = weight[g].double()
        for j in range(9):
            torch.testing.assert_close(seen[j].reshape(2, 4)[g].double(), w[:, j], rtol=1e-3, atol=1e-3)
            inverse = torch.linalg.inv(second[g, j:, j:].double())
            error = (w[:, j] - w[:, j].round()) / inverse[0, 0]
            w[:, j:] -= error[:, None] * inverse[0]
            torch.testing.assert_close(done[g, :, j].double(), w[:, j], rtol=1e-3, atol=1e-3)


def test_sweep_in_lazy_parts_is_the_same(monkeypatch):
    second, weight = second_moment(1, 30), torch.randn(1, 6, 30)
    whole = sweep(weight, second, lambda j, c: c * (j % 2))
    monkeypatch.setattr("mvq.recover.compensate._LAZY_COLUMNS", 7)
    torch.testing.assert_close(sweep(weight, second, lambda j, c: c * (j % 2)), whole, rtol=1e-3, atol=1e-4)


def test_refit_solves_each_row():
    second, target = second_moment(2, 12), torch.randn(2, 5, 12)
    mask = torch.rand(2, 5, 12) < 0.5
    found = refit(target, target, mask, second)
    for g in range(2):
        for r in range(5):
            on = mask[g, r]
            rhs = (target[g, r].double() @ second[g].double())[on]
            exact = torch.linalg.solve(second[g].double()[on][:, on], rhs)
            torch.testing.assert_close(found[g, r, on].double(), exact, rtol=1e-3, atol=1e-3)
            assert not found[g, r, ~on].any()


def test_target_is_the_regression_on_the_changed_inputs():
    x = torch.randn(400, 7, dtype=torch.float64)
    changed = x + 0.5 * torch.randn(400, 7, dtype=torch.float64)
    weight = torch.randn(3, 7, dtype=torch.float64)
    second, cross = changed.T @ changed / 400, x.T @ changed / 400
    target, _ = least_squares_target(weight[None], second[None], cross[None], 1e-9)
    torch.testing.assert_close(target[0], torch.linalg.lstsq(changed, x @ weight.T).solution.T, rtol=1e-4, atol=1e-4)
    same, damped = least_squares_target(weight[None], second[None], second[None], 0.1)
    torch.testing.assert_close(same[0], weight)
    assert damped.diagonal(dim1=1, dim2=2).min() > second.diagonal().min()


def test_a_layer_without_input_keeps_its_weight():
    weight = torch.randn(1, 3, 4)
    target, damped = least_squares_target(weight, torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), 0.01)
    torch.testing.assert_close(target, weight)
    assert torch.equal(damped[0], torch.eye(4))


@pytest.mark.parametrize("max_columns", [10**6, 7])
@pytest.mark.parametrize(
    ("layer", "pattern", "d"),
    [
        (conv(8, 16, 3, padding=1), "1:2", 4),
        (conv(8, 20, 1), "4:16", 16),
        (conv(8, 12, 3, padding=1, groups=2), "2:4", 8),
    ],
)
def test_compensated_pruning_beats_magnitude(layer, pattern, d, max_columns):
    pattern = Pattern.parse(pattern)
    weight = layer.weight.detach()
    moments = correlated(layer, max_columns=max_columns)
    mask, kept = prune_compensated(weight, moments, pattern, d, torch.ones(len(weight)), 1e-3)
    complete_mask(mask.numpy(), pattern, d)
    assert not kept[~mask].any()
    plain = weight_mask(magnitude_mask(weight.numpy(), pattern, d), tuple(weight.shape))
    before = error_of(layer, weight * torch.from_numpy(plain), weight, moments)
    assert error_of(layer, kept, weight, moments) < 0.7 * before


def test_curvature_decides_which_channels_stay():
    layer = conv(4, 8, 1)
    curvature = torch.tensor([1e6, 1.0] * 4)
    mask, _ = prune_compensated(layer.weight.detach(), correlated(layer), Pattern(1, 2), 2, curvature, 0.01)
    assert mask[0::2].all()
    assert not mask[1::2].any()


@pytest.mark.parametrize("codewords", ["masked", "packed"])
@pytest.mark.parametrize(
    ("layer", "pattern", "d"),
    [
        (conv(8, 16, 3, padding=1), "1:2", 4),
        (conv(8, 20, 3, padding=1), "1:2", 8),
        (conv(8, 16, 3, padding=1), "1:1", 4),
        (conv(8, 12, 3, padding=1, groups=2), "2:4", 8),
    ],
)
def test_compensated_assignment_lowers_the_output_error(codewords, layer, pattern, d):
    torch.manual_seed(0)
    layer = type(layer)(
        layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding, groups=layer.groups
    )
    recipe = mvq.Recipe(pattern=pattern, d=d, n_codewords=16, codewords=codewords, first_conv="compress")
    net = nn.Sequential(layer)
    mvq.prune_(net, recipe)
    weight = layer.weight.detach().clone()
    mvq.cluster_(net, recipe)
    form = form_of(layer)
    moments = correlated(layer)
    before = error_of(layer, layer.weight.detach(), weight, moments)
    assign_compensated_(form, weight, moments, torch.ones(len(weight)), damping=1e-3, rounds=2)
    after = error_of(layer, layer.weight.detach(), weight, moments)
    assert after < 0.8 * before
    counts = form.codebook.counts.clone()
    form.codebook.counts.zero_()
    form.count_members()
    assert torch.equal(form.codebook.counts, counts)


def test_without_correlation_assignments_are_the_nearest():
    """With `H = I` nothing is passed on, so that a shared codebook gets what `assign` gives."""
    net = nn.Sequential(conv(4, 16, 3), conv(16, 16, 1))
    recipe = mvq.Recipe(pattern="1:2", d=4, n_codewords=8, scope="network", first_conv="compress")
    mvq.prune_(net, recipe)
    weight = net[0].weight.detach() + 0.05
    mvq.cluster_(net, recipe)
    form, values = form_of(net[0]), form_of(net[0]).codebook.values.detach().clone()
    counts = form.codebook.counts.clone()
    moments = Moments(36, 10**6)
    moments.add(torch.cat([6 * torch.eye(36), -6 * torch.eye(36)])[None])  # second moment: the identity
    curvature = torch.linspace(0.5, 2, 16)
    assign_compensated_(form, weight, moments, curvature, damping=1e-6, rounds=3)
    mask = form.pattern.unrank(form.mask_ids.numpy())
    weights = np.tile(curvature.numpy().reshape(4, 1, 4), (1, 36, 1)).reshape(-1, 4)
    expected, _ = assign(to_subvectors(weight, 4).numpy(), mask, form.codebook().detach().numpy(), weights=weights)
    assert (form.assignments.numpy() == expected).mean() > 0.99
    assert torch.equal(form.codebook.values, values)
    assert int(form.codebook.counts.sum()) == int(counts.sum())
