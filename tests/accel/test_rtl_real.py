"""Real compressed networks on a real image, through the RTL."""

import pytest
from benchmarks.networks import REGISTRY
from real_nets import integer_network_of

from mvq.accel.functional import Machine
from mvq.accel.rtl.cosim import cosim_network
from mvq.accel.rtl.simulation import Simulation
from mvq.accel.spec import preset
from mvq.recipe import Recipe

NETWORK = {"scope": "network", "first_conv": "int8", "classifier": "int8"}


@pytest.fixture(autouse=True)
def _data(data_root, monkeypatch):
    monkeypatch.setenv("MVQ_DATA", str(data_root))


def through_rtl(name, machine, folder, *, layers=None, stalls=0.0):
    """Every partial sum and, without stalls, every cycle."""
    codewords = "packed" if machine.startswith("ews-p") else "masked"
    recipe = Recipe(pattern="4:16", d=16, n_codewords=512, codewords=codewords, **NETWORK)
    spec = preset(machine)
    laid = Machine(integer_network_of(name, recipe, 32), spec)
    image = next(iter(REGISTRY[name].data(split="val", limit=1, batch_size=1)))[0].numpy()
    found = cosim_network(Simulation(spec, folder), laid, image, layers=layers or list(laid.layers), stalls=stalls)
    assert [one.layer for one in found] == (layers or list(laid.layers))
    assert all(one.why_not == "" and one.sums > 0 for one in found)
    assert {one.layer: one.wrong for one in found if one.wrong} == {}
    if stalls == 0:
        assert {one.layer: one.cycles - one.modelled for one in found if one.cycles != one.modelled} == {}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["ws-16", "ews-16", "ews-cms-16", "ews-p-16", "ews-cms-32"])
def test_resnet20(machine, rtl_folder):
    """First, strided and inner convolutions, and the fully connected layer."""
    assert len(through_rtl("resnet20", machine, rtl_folder)) == 20


@pytest.mark.slow
def test_a_residual_block_with_stalls(rtl_folder):
    through_rtl("resnet20", "ews-cms-16", rtl_folder, layers=["layer2.0.conv1", "layer2.0.conv2"], stalls=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_imagenet_networks(name, rtl_folder):
    """Layers of 1x1 and 3x3, depth-wise ones too, of 224 x 224 pixels."""
    through_rtl(name, "ews-cms-16", rtl_folder)
