"""Real compressed networks on a real image, through the RTL."""

import numpy as np
import pytest
from benchmarks.networks import REGISTRY
from output_unit import batch, through
from real_nets import integer_network_of

from mvq.accel.functional import Machine
from mvq.accel.network.execute import execute
from mvq.accel.rtl.cosim import cosim_network
from mvq.accel.rtl.output import output_lanes
from mvq.accel.rtl.program import program, sums
from mvq.accel.rtl.simulation import Simulation
from mvq.accel.spec import preset
from mvq.recipe import Recipe

NETWORK = {"scope": "network", "first_conv": "int8", "classifier": "int8"}


@pytest.fixture(autouse=True)
def _data(data_root, monkeypatch):
    monkeypatch.setenv("MVQ_DATA", str(data_root))


def through_rtl(name, machine, folder, *, layers=None, stalls=0.0):
    """Every partial sum, every input read and, without stalls, every cycle."""
    codewords = "packed" if machine.startswith("ews-p") else "masked"
    recipe = Recipe(pattern="4:16", d=16, n_codewords=512, codewords=codewords, **NETWORK)
    spec = preset(machine)
    laid = Machine(integer_network_of(name, recipe, 32), spec)
    image = next(iter(REGISTRY[name].data(split="val", limit=1, batch_size=1)))[0].numpy()
    found = cosim_network(Simulation(spec, folder), laid, image, layers=layers or list(laid.layers), stalls=stalls)
    assert [one.layer for one in found] == (layers or list(laid.layers))
    assert all(one.why_not == "" and one.sums > 0 for one in found)
    assert [one for one in found if not one.agrees(stalled=stalls > 0)] == []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["ws-16", "ews-16", "ews-cms-16", "ews-p-16", "ews-cms-32"])
def test_resnet20(machine, rtl_folder):
    """First, strided and inner convolutions, and the fully connected layer."""
    assert len(through_rtl("resnet20", machine, rtl_folder)) == 20


@pytest.mark.slow
def test_a_residual_block_with_stalls(rtl_folder):
    through_rtl("resnet20", "ews-cms-16", rtl_folder, layers=["layer2.0.conv1", "layer2.0.conv2"], stalls=0.3)


def codes_of(spec, requantizations, bias, values, others=None):
    """Codes `(K, P, Q)` that the output unit makes of sums or codes, and of what is added to them."""
    n, lanes = len(values), output_lanes(spec)
    flat = np.stack([values, np.zeros_like(values) if others is None else others], -1).reshape(n, -1, 2)
    mantissa, other, shift, low, high = requantizations
    constants = np.broadcast_to(np.stack([bias, mantissa, other, shift], -1), (n, 4))
    batches = [
        batch(constants[i : i + lanes], flat[i : i + lanes].transpose(1, 0, 2), low, high) for i in range(0, n, lanes)
    ]
    found = through(spec, batches, stalls=0.0)
    return found.reshape(n // lanes, -1, lanes).transpose(0, 2, 1).reshape(values.shape)


@pytest.mark.slow
def test_a_residual_block_from_codes_to_codes(rtl_folder):
    """Two convolutions and the addition through RTL alone: each takes what the one before it made."""
    spec = preset("ews-cms-16")
    recipe = Recipe(pattern="4:16", d=16, n_codewords=512, **NETWORK)
    machine = Machine(integer_network_of("resnet20", recipe, 32), spec)
    network = machine.network
    image = next(iter(REGISTRY["resnet20"].data(split="val", limit=1, batch_size=1)))[0].numpy()
    nodes = {node.name: node for node in network.nodes}
    add = next(
        node for node in nodes.values() if node.kind == "add" and nodes[node.inputs[0]].layer == "layer1.1.conv2"
    )
    second = nodes[add.inputs[0]]
    first = nodes[second.inputs[0]]
    wanted = execute(network, image, keep=[first.inputs[0], first.name, second.name, add.name])
    simulation = Simulation(spec, rtl_folder)
    codes = start = wanted[first.inputs[0]][0]
    for node in (first, second):
        layer, mapping = machine.layers[node.layer], machine.mappings[node.layer]
        done = simulation.run(program(spec, layer, mapping, machine.stored[node.layer], codes))
        factors = node.requantization
        constants = (factors.mantissa.ravel(), 0 * factors.mantissa.ravel(), factors.shift.ravel())
        codes = codes_of(
            spec, (*constants, factors.low, factors.high), node.bias.ravel(), sums(spec, layer, mapping, done.memory)
        )
        assert (codes == wanted[node.name][0]).all()
    pair = [np.array(number) for number in (*add.mantissas, add.shift)]
    assert add.inputs[1] == first.inputs[0]
    codes = codes_of(spec, (*pair, add.low, add.high), np.array(0), codes.astype(np.int64), start)
    assert (codes == wanted[add.name][0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_imagenet_networks(name, rtl_folder):
    """Layers of 1x1 and 3x3, depth-wise ones too, of 224 x 224 pixels."""
    through_rtl(name, "ews-cms-16", rtl_folder)
