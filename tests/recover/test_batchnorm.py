"""Matching output statistics."""

import copy

import pytest
import torch
from recover_nets import images, residual
from torch import nn

from mvq.recover import match_batchnorm_
from mvq.recover.statistics import watching


def statistics(model, x):
    found = {}
    names = {m: n for n, m in model.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d, nn.Linear))}

    def see(module, _, y):
        rows = y if isinstance(module, nn.Linear) else y.movedim(1, -1)
        rows = rows.detach().flatten(0, -2)
        found[names[module]] = rows.mean(0), rows.std(0)

    with watching(list(names), see), torch.no_grad():
        model(x)
    return found


def damaged(dense, share):
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.mul_(1 + share * torch.randn(module.weight.shape, generator=generator))
    return model


def test_means_and_deviations_are_those_of_the_dense_network():
    dense, x = residual(), images(32)
    model = damaged(dense, 0.5)
    assert match_batchnorm_(model, dense, x.split(10)) is model
    ours, theirs = statistics(model, x), statistics(dense, x)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            torch.testing.assert_close(ours[name][0], theirs[name][0], rtol=1e-3, atol=1e-4)
            # Factors are bounded, which a channel that is next to silent in one of the networks runs into.
            matched = torch.isclose(ours[name][1], theirs[name][1], rtol=1e-3, atol=1e-6)
            assert matched.float().mean() > 0.85
    for name in ("wide", "fc"):
        kept = ours[name][1] >= 0.8 * theirs[name][1]
        assert kept.any()
        torch.testing.assert_close(ours[name][0][kept], theirs[name][0][kept], rtol=1e-3, atol=1e-4)


def test_a_bias_stays_where_the_spread_is_lost():
    dense, x = residual(), images(32)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.fc.weight[:5] *= 0.5  # pyright: ignore
    match_batchnorm_(model, dense, [x])
    same = model.fc.bias == dense.fc.bias  # pyright: ignore
    assert same[:5].all()
    torch.testing.assert_close(model(x).mean(0)[5:], dense(x).mean(0)[5:], rtol=1e-3, atol=1e-4)


def test_an_undamaged_network_stays():
    dense, x = residual(), images(16)
    model = match_batchnorm_(copy.deepcopy(dense), dense, [x])
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


def test_running_statistics_are_not_touched():
    dense = residual()
    model = match_batchnorm_(damaged(dense, 0.3), dense, [images(8)])
    for (name, ours), (_, theirs) in zip(model.named_buffers(), dense.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_silent_channel_gets_its_mean_and_no_division():
    dense, x = residual(), images(16)
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model.stem[0].weight[3] = 0
    match_batchnorm_(model, dense, [x])
    found, wanted = statistics(model, x)["stem.1"], statistics(dense, x)["stem.1"]
    assert float(found[0][3]) == pytest.approx(float(wanted[0][3]), abs=1e-4)
    assert all(torch.isfinite(p).all() for p in model.parameters())
