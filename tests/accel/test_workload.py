"""Layers out of integer networks and topology files, and the commands that take them."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mvq
from mvq.accel.cycle import run_network
from mvq.accel.network import save
from mvq.accel.spec import preset
from mvq.accel.workload import Layer, as_the_machine_stores, layers_of, read_topology
from mvq.cli.app import app
from mvq.errors import ConfigError, FileError
from mvq.patterns import Pattern

HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        x = (self.a(x) + x).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    recipe = mvq.Recipe(pattern="2:4", d=8, n_codewords=16, classifier="int8", rows_per_codeword=0)
    model = mvq.cluster_(mvq.prune_(Residual().eval(), recipe), recipe)
    return mvq.integer_network(model, [torch.randn(2, 3, 8, 8)])


def test_layers_of_an_integer_network(network):
    first, second, last = layers_of(network)
    assert (first.name, first.in_size, first.out_size, first.compressed) == ("first", (8, 8), (4, 4), False)
    assert (second.pattern, second.index_bits, second.lanes) == (Pattern(2, 4), 4, 8)
    assert (second.residual_bytes, first.residual_bytes) == (16 * 4 * 4, 0)
    assert (last.c_in, last.c_out, last.n_positions) == (16, 4, 1)
    spec = preset("ews-cms-64")
    assert second.word_bits(spec) == 2 * 4 + 4 * 3
    assert as_the_machine_stores(second).word_bits(spec) == 9 + 4 * 3


def test_subvectors_that_do_not_fit_the_machine_are_named():
    layer = Layer(name="a", c_in=16, c_out=48, compressed=True, pattern=Pattern(2, 4), lanes=12)
    with pytest.raises(ConfigError, match="its subvectors have 12 lanes, of which d=16 is no multiple"):
        run_network(preset("ews-cms-16"), [layer])
    assert run_network(preset("ews-16"), [layer]).cycles.total > 0


def test_topology_files(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(HEADER + "conv1, 230, 230, 7, 7, 3, 64, 2,\n\nfc, 1, 1, 1, 1, 512, 1000, 1,\n")
    first, second = read_topology(path, Pattern(4, 16))
    assert (first.out_size, first.compressed) == ((112, 112), False)
    assert (second.c_in, second.c_out, second.pattern) == (512, 1000, Pattern(4, 16))
    path.write_text(HEADER + "a, 1, 1\nb, 1, 1, 1, 1, 0, 1, 1\nc, 1, 1, 1, 1, 1, 1, 1, 1, 1\n")
    wanted = r"(?s)expected name, 7 or 8 whole numbers a line: line 2: .*line 3: layer 'b': c_in.*line 4: 9 numbers"
    with pytest.raises(ConfigError, match=wanted):
        read_topology(path)
    with pytest.raises(FileError, match="cannot be read"):
        read_topology(tmp_path / "none.csv")


def test_topology_files_with_depth_wise_layers_and_strides_of_both_sides(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(HEADER + "a, 8, 8, 1, 1, 4, 8, 1,\nb_DP, 9, 9, 3, 3, 8, 2, 1, 2,\n")
    layer = read_topology(path, Pattern(2, 4))[1]
    assert (layer.c_in, layer.c_out, layer.groups, layer.out_size) == (8, 16, 8, (7, 4))
    assert not layer.compressed
    assert layer.dense_macs == 8 * 2 * 9 * 7 * 4


def test_commands(network, tmp_path):
    path = tmp_path / "net.mvq"
    save(network, path)
    runner = CliRunner()
    shown = runner.invoke(app, ["simulate", str(path), "--arch", "ews-cms-16", "--explain"])
    assert shown.exit_code == 0, shown.output
    assert "TOPS/W without DRAM" in shown.output
    assert "CACTI" in shown.output
    found = json.loads(runner.invoke(app, ["simulate", str(path), "--json"]).output)
    assert found["cycles"] == sum(layer["cycles"] for layer in found["layers"])
    rows = json.loads(runner.invoke(app, ["compare", str(path), "--json"]).output)
    assert rows[0]["machine"] == "ws-64"
    assert rows[0]["speed_up"] == 1
    lines = runner.invoke(app, ["compare", str(path), "--csv", "--arch", "ews-64", "--arch", "ews-cms-64"]).output
    assert len(lines.splitlines()) == 3
    assert runner.invoke(app, ["simulate", str(path), "--arch", "none"]).exit_code == 1


def test_codebooks_that_exceed_the_machine_are_named():
    layer = Layer(name="a", c_in=16, c_out=48, compressed=True, pattern=Pattern(4, 16), index_bits=10)
    with pytest.raises(ConfigError, match=r"its indices have 10 bits, those of n_codewords=512 fewer"):
        run_network(preset("ews-cms-64"), [layer])
    assert run_network(preset("ews-64"), [layer]).cycles.total > 0


def test_a_machine_without_masks_keeps_indices_of_layers_without_masks():
    spec = preset("ews-c-64")
    layer = Layer(name="a", c_in=16, c_out=48, compressed=True, index_bits=3, lanes=4)
    assert layer.word_bits(spec) == 2 * 3
    assert dataclasses.replace(layer, pattern=Pattern(2, 4)).word_bits(spec) == spec.index_bits == 10
    assert as_the_machine_stores(layer).word_bits(spec) == 10
    with pytest.raises(ConfigError, match="its subvectors have 3 lanes, of which d=8 is no multiple"):
        run_network(spec, [dataclasses.replace(layer, lanes=3)])
