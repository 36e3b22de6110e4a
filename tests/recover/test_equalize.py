"""Layers of one scale: the network stays, the RMS becomes equal, a shared codebook serves small layers."""

import copy

import pytest
import torch
from recover_nets import Untraceable, images, residual
from torch import nn

import mvq
from mvq.errors import ModelError
from mvq.nn.layers import form_of
from mvq.recover import equalize_

# `expand` and `project` have a batch norm behind them, `wide` has none
RECIPE = mvq.Recipe(pattern="1:2", d=4, n_codewords=32, scope="network", classifier="int8")


def uneven() -> nn.Module:
    """`project` a thousand times smaller than `expand`; batch norm makes up for it."""
    net = residual()
    with torch.no_grad():
        conv, norm = net.project[0], net.project[1]
        conv.weight.mul_(1e-3)
        norm.running_mean.mul_(1e-3)
        norm.running_var.mul_(1e-6)
        norm.eps *= 1e-6
    return net


def rms(module: nn.Module) -> float:
    weight = module.weight.detach()
    return float(weight[weight != 0].square().mean().sqrt())


@pytest.mark.parametrize("pruned", [False, True])
def test_outputs_stay_and_scales_become_equal(pruned: bool) -> None:
    net = uneven()
    if pruned:
        mvq.prune_(net, RECIPE)
    before, wide = net(images()), net.wide.weight.detach().clone()
    assert equalize_(net, RECIPE) == 2
    torch.testing.assert_close(net(images()), before, rtol=1e-4, atol=1e-5)
    assert rms(net.expand[0]) == pytest.approx(rms(net.project[0]), rel=1e-4)
    assert torch.equal(net.wide.weight, wide)


def test_a_shared_codebook_serves_small_layers() -> None:
    errors = []
    for equal in (False, True):
        net = uneven()
        if equal:
            equalize_(net, RECIPE)
        energy = float(net.project[0].weight.detach().square().sum())
        form = form_of(mvq.cluster_(copy.deepcopy(net), RECIPE).project[0])
        errors.append(form.masked_sse / energy)
    assert errors[1] < errors[0] / 2


def test_a_variance_that_would_be_negative_is_left_alone() -> None:
    net = uneven()
    net.project[1].running_var.zero_()
    with torch.no_grad():
        net.project[0].weight.mul_(1e6)
    weight = net.project[0].weight.detach().clone()
    assert equalize_(net, RECIPE) == 1
    assert torch.equal(net.project[0].weight, weight)


def test_not_traceable() -> None:
    with pytest.raises(ModelError, match=r"model Untraceable cannot be traced by torch\.fx"):
        equalize_(Untraceable(), RECIPE)
