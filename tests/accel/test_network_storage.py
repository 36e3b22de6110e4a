"""Integer networks in files."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_nets import images
from small_nets import batch, small_net
from torch import nn
from torch.nn import functional

import mvq
from mvq.accel.network import NODES, IntegerNetwork, TensorSpec, from_torch, load, save
from mvq.accel.network.storage import from_model
from mvq.errors import DigestError, FileError, FormatError, HeaderError, ModelError, ShapeError
from mvq.format import read, write

KEY = "integer_network"


class Everything(nn.Module):
    """At least one node of every kind."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(8, 5)

    def forward(self, x):
        x = functional.pad(functional.max_pool2d(x, 2), (1, 0, 0, 1, 0, 0))
        y = self.conv(functional.relu(x[:, :, 1:]))
        s = functional.silu(y)
        z = self.norm(s) + y.mean((2, 3), keepdim=True).expand_as(y)
        z = torch.cat([z * y, functional.interpolate(y, size=y.shape[2:], mode="bilinear"), s], 1)
        z = functional.interpolate(z, scale_factor=2).transpose(2, 3)
        return self.fc(z.flatten(1)[:, :8])


@pytest.fixture(scope="module")
def everything() -> IntegerNetwork:
    torch.manual_seed(0)
    network = from_torch(Everything().eval(), [images(2, 8)], provenance={"model": "x:y", "n": 3})
    assert {node.kind for node in network.nodes} == set(NODES)
    return network


@pytest.fixture(scope="module")
def compressed() -> IntegerNetwork:
    net = small_net().eval()
    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=16, max_iters=2)
    mvq.prune_(net, recipe)
    mvq.cluster_(net, recipe)
    return mvq.integer_network(net, [batch(4)[0]], psum_bits=28)


@pytest.mark.parametrize("which", ["everything", "compressed"])
def test_round_trip(which, request, tmp_path):
    network = request.getfixturevalue(which)
    n_bytes = save(network, tmp_path / "a.mvq")
    again = load(tmp_path / "a.mvq")
    assert save(again, tmp_path / "b.mvq") == n_bytes
    assert (tmp_path / "a.mvq").read_bytes() == (tmp_path / "b.mvq").read_bytes()
    assert (again.input, again.outputs, again.psum_bits) == (network.input, network.outputs, network.psum_bits)
    assert dict(again.tensors) == dict(network.tensors)
    assert again.provenance == network.provenance
    x = images(3, 8 if which == "everything" else 16).numpy()
    found, expected = again.activations(x), network.activations(x)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(0)
        save(from_torch(Everything().eval(), [images(2, 8)]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_stay_compressed_in_the_file(compressed, tmp_path):
    save(compressed, tmp_path / "a.mvq")
    stored = read(tmp_path / "a.mvq")
    assert [layer.name for layer in stored.vq_layers] == [layer.name for layer in compressed.weights.vq_layers]
    assert len(stored.vq_layers) >= 5


def test_running_needs_no_torch(everything, tmp_path):
    save(everything, tmp_path / "a.mvq")
    code = (
        "import sys, numpy as np; from mvq.accel.network import load\n"
        f"print(load({str(tmp_path / 'a.mvq')!r}).run(np.ones((1, 3, 8, 8), np.float32)).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 5) False\n"


def test_damaged_bytes(everything, tmp_path):
    path = tmp_path / "a.mvq"
    save(everything, path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"", whole[:100], b"x" * 200):
        path.write_bytes(damaged)
        with pytest.raises(FormatError) as error:
            load(path)
        assert str(error.value).startswith(f"file {str(path)!r}: ")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestError):
        load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(FileError):
        load(tmp_path / "none.mvq")
    network = from_torch(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), [images(1, 4)])
    with pytest.raises(FileError):
        save(network, tmp_path / "no" / "such" / "folder.mvq")


def test_a_compressed_network_is_no_integer_network(everything, tmp_path):
    path = tmp_path / "a.mvq"
    write(everything.weights, path)
    with pytest.raises(HeaderError) as error:
        load(path)
    assert str(error.value) == (
        f"file {str(path)!r}: integer network: the file holds a compressed network, but no integer network; write it "
        f"anew with mvq export"
    )


def _rows(graph, kind):
    return next(row for row in graph["nodes"] if row[0] == kind)


def _set(kind, key, value):
    def change(graph, tensors):
        _rows(graph, kind)[3][key] = value

    return change


def _graph(key, value):
    return lambda graph, tensors: graph.__setitem__(key, value)


def _tensor(part, value):
    def change(graph, tensors):
        name = next(name for name in tensors if name.endswith(part))
        tensors[name] = value(tensors[name])

    return change


HOSTILE = {
    "version": (_graph("version", 2), "version 2, this version of mvq reads 1"),
    "keys": (
        _graph("more", 1),
        "keys ['input', 'more', 'nodes', 'origin', 'outputs', 'psum_bits', 'tensors', 'version']",
    ),
    "psum bits": (_graph("psum_bits", 64), "network: psum_bits=64 is not in 2..32"),
    "psum bits, type": (_graph("psum_bits", "32"), "'32' is not a whole number of at most 16777216"),
    "outputs": (_graph("outputs", ["nowhere"]), "outputs are ('nowhere',)"),
    "no outputs": (_graph("outputs", []), "outputs are ()"),
    "origin": (_graph("origin", 3), "origin is 3, must be an object"),
    "unknown kind": (lambda g, t: g["nodes"][0].__setitem__(0, "fft"), "is of the kind 'fft'; known are conv, linear"),
    "order": (lambda g, t: g["nodes"].reverse(), "which nothing before it makes; order operations as they run"),
    "twice": (lambda g, t: g["nodes"].append(_rows(g, "clamp")), "is there twice; order operations as they run"),
    "input name": (lambda g, t: _rows(g, "add")[2].__setitem__(0, 7), "has the settings"),
    "setting": (_set("max_pool", "colour", 3), "has the settings"),
    "missing setting": (
        lambda g, t: _rows(g, "clamp")[3].pop("high"),
        "missing 1 required keyword-only argument: 'high'",
    ),
    "kernel": (_set("max_pool", "kernel", [0, 2]), "kernel (0, 2) must be positive"),
    "kernel, type": (_set("max_pool", "kernel", [2.5, 2]), "2.5 is not a whole number"),
    "padding": (_set("conv", "padding", [-1, 0, 0, 0]), "padding must not be negative"),
    "groups": (_set("conv", "groups", 0), "groups must be positive"),
    "groups, wrong": (
        _set("conv", "groups", 3),
        "operation 'conv' (conv) does not fit its inputs: layer 'conv': ifmap",
    ),
    "clamp": (_set("clamp", "high", 1 << 20), "operation 'relu': 0..1048576 is not a range within -128..127"),
    "add": (_set("add", "mantissas", [None, 1]), "operation 'add': mantissas (None, 1) with shift "),
    "add, large": (_set("add", "mantissas", [1 << 24, (1 << 24) + 1]), "not a whole number of at most 16777216"),
    "add, range": (_set("add", "low", 128), "operation 'add': 128..127 is not a range within -128..127"),
    "add, shift": (_set("add", "shift", 63), "with shift 63; expected two integers up to 2**24 and a shift of 0 to 62"),
    "layer": (_set("conv", "layer", "other"), "needs the layer 'other', which is not there"),
    "size": (_set("resize", "size", [1 << 20, 2]), "size (1048576, 2) is not in 1..16384"),
    "stride": (
        _set("conv", "stride", [2, 2]),
        "operation 'mean' (average_pool) does not fit its inputs: a (4, 5) window",
    ),
    "reshape": (_set("reshape", "shape", [3]), "does not hold as many values as (3,)"),
    "bounds": (_set("conv", "requantization", [5, 300]), "5..300 is not a range within -128..127"),
    "mantissa": (_tensor(".mantissa", lambda a: a.astype(np.int64)), "requantization: mantissa int64"),
    "mantissa, large": (_tensor(".mantissa", lambda a: a * 0 + (1 << 30)), "a mantissa is beyond 2**24"),
    "bias": (_tensor(".bias", lambda a: a.astype(np.float32)), "bias is float32, must be int32"),
    "table": (_tensor(".table", lambda a: a[:255]), "a table of (255,), must have 256 entries"),
    "left over": (lambda g, t: t.__setitem__("x.y", np.zeros(2, np.int8)), "tensors ['x.y'] belong to no operation"),
    "scale": (
        lambda g, t: g["tensors"][0].__setitem__(3, 0.1),
        "type 'int8' with scale 0.1; the scale must be a positive",
    ),
    "scale, sign": (lambda g, t: g["tensors"][0].__setitem__(3, -0.5), "with scale -0.5"),
    "type": (lambda g, t: g["tensors"][1].__setitem__(1, "int4"), "type 'int4' with scale"),
    "tensor missing": (lambda g, t: g["tensors"].pop(), "are described or made, but not both"),
    "shape": (lambda g, t: g["tensors"][1].__setitem__(2, [1, 2]), "is described as TensorSpec(shape=(1, 2)"),
}


@pytest.mark.parametrize(("change", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_graphs(change, text, everything, tmp_path):
    """Well-formed files with a fault in the graph."""
    path = tmp_path / "a.mvq"
    save(everything, path)
    model = read(path)
    graph, tensors = dict(model.provenance[KEY]), dict(model.tensors)
    change(graph, tensors)
    write(dataclasses.replace(model, tensors=tensors, provenance={KEY: graph}), path)
    with pytest.raises(FormatError) as error:
        load(path)
    assert str(error.value).startswith(f"file {str(path)!r}: integer network: ")
    assert text in str(error.value)


ODD = [
    None,
    True,
    -1,
    0,
    1,
    3,
    7,
    1 << 23,
    1 << 40,
    0.5,
    -2.5,
    "",
    "x",
    "conv",
    [],
    [0],
    [1, 2],
    [[1, 2]],
    {},
    {"a": 1},
]


def _places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


@pytest.fixture(scope="module")
def stored(everything, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "a.mvq"
    save(everything, path)
    return read(path)


@settings(max_examples=150)
@given(data=st.data())
def test_no_graph_does_more_than_raise(data, stored):
    """Any value anywhere: the file loads, or the fault is one of the format."""
    graph = json.loads(json.dumps(stored.provenance[KEY]))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(_places(graph))[1:]))
        odd = data.draw(st.sampled_from(ODD))
        target = graph
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = odd
    model = dataclasses.replace(stored, provenance={KEY: graph})
    with contextlib.suppress(FormatError):
        from_model(model, "a.mvq")


def test_misuse(everything):
    with pytest.raises(ShapeError) as error:
        everything.run(np.zeros((2, 3, 9, 8), np.float32))
    assert str(error.value) == "images (2, 3, 9, 8): the network takes ('N', 3, 8, 8); resize or crop them"
    with pytest.raises(ModelError) as caught:
        everything.node("nowhere")
    assert str(caught.value) == "network has no operation 'nowhere'; see nodes"
    assert everything.node("conv").kind == "conv"
    with pytest.raises(ShapeError):
        IntegerNetwork("x", ("x",), {"x": TensorSpec((3, 4, 4))}, (), everything.weights, psum_bits=33)
