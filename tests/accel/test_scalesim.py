"""SCALE-Sim's folds against an array stepped through, and against what that tool reported."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cycle import mapped
from typer.testing import CliRunner

from mvq.accel.cycle import LayerRun, best_mapping, layer_actions, layer_cycles, run_network
from mvq.accel.cycle.reference import simulate
from mvq.accel.cycle.scalesim import array_cycles, causes, compute_report, folds, report_csv, topology
from mvq.accel.mapping import Mapping
from mvq.accel.spec import preset
from mvq.accel.workload import Layer, read_topology
from mvq.cli.app import app
from mvq.errors import ConfigError

RESNET = [
    Layer(name="conv1", c_in=3, c_out=64, kernel=(7, 7), stride=(2, 2), padding=(3,) * 4, in_size=(224, 224)),
    Layer(name="layer1", c_in=64, c_out=64, kernel=(3, 3), padding=(1,) * 4, in_size=(56, 56)),
    Layer(name="down", c_in=64, c_out=128, stride=(2, 2), in_size=(56, 56)),
    Layer(name="layer4", c_in=512, c_out=512, kernel=(3, 3), padding=(1,) * 4, in_size=(7, 7)),
    Layer(name="fc", c_in=512, c_out=1000),
]


def fold_by_fold(inputs, weights, rows, cols):
    """A product on a systolic array, cycle by cycle: what it gives, and how long it takes."""
    total, cycles = np.zeros((len(inputs), weights.shape[1])), 0
    for right in range(0, weights.shape[1], cols):
        for down in range(0, weights.shape[0], rows):
            part, held = weights[down : down + rows, right : right + cols], np.zeros((rows, cols))
            for row in range(rows):  # pushed down from the top, the last row first
                held = np.vstack([np.zeros((1, cols)), held[:-1]])
                source = rows - 1 - row
                if source < len(part):
                    held[0, : part.shape[1]] = part[source]
                cycles += 1
            passed, sums, left = np.zeros((rows, cols)), np.zeros((rows, cols)), len(inputs) * cols
            now = 0
            while left:
                before = passed.copy()
                passed[:, 1:] = before[:, :-1]
                for row in range(rows):
                    position, place = now - row, down + row
                    valid = 0 <= position < len(inputs) and place < weights.shape[0]
                    passed[row, 0] = inputs[position, place] if valid else 0
                sums = np.vstack([np.zeros((1, cols)), sums[:-1]]) + passed * held
                for col in range(cols):
                    position = now - col - (rows - 1)
                    if 0 <= position < len(inputs):
                        left -= 1
                        if right + col < weights.shape[1]:
                            total[position, right + col] += sums[-1, col]
                now, cycles = now + 1, cycles + 1
    return total, cycles


@st.composite
def small_layers(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Layer(
        name="layer",
        c_in=groups * draw(st.integers(1, 4)),
        c_out=groups * draw(st.integers(1, 5)),
        groups=groups,
        kernel=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        padding=(draw(st.integers(0, 1)),) * 4,
        in_size=(draw(st.integers(3, 5)), draw(st.integers(3, 5))),
    )


@settings(max_examples=40, deadline=None)
@given(small_layers(), st.integers(1, 5), st.integers(1, 4))
def test_cycles_are_those_of_an_array_that_computes_the_layer(layer, rows, cols):
    random = np.random.default_rng(0)
    image = random.integers(-9, 9, (layer.c_in, *layer.in_size)).astype(float)
    weights = random.integers(-9, 9, (layer.c_out, layer.c_in // layer.groups, *layer.kernel)).astype(float)
    made, cycles = [], 0
    for taken, filters in zip(np.split(image, layer.groups), np.split(weights, layer.groups), strict=True):
        columns = torch.nn.functional.unfold(
            torch.from_numpy(taken)[None], layer.kernel, padding=layer.padding[0], stride=layer.stride
        )
        product, spent = fold_by_fold(columns[0].numpy().T, filters.reshape(len(filters), -1).T, rows, cols)
        made.append(product.T)
        cycles += spent
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(image), torch.from_numpy(weights), None, layer.stride, layer.padding[0], 1, layer.groups
    )
    assert np.array_equal(np.concatenate(made), wanted.reshape(layer.c_out, -1).numpy())
    assert folds(layer, rows=rows, cols=cols).cycles == cycles


#: Input, kernel, channels, filters, stride; what SCALE-Sim 3.0.0 reported at 32 x 32, without any stall.
REPORTED = {
    (9, 3, 64, 64, 1): 5147,
    (1, 1, 512, 100, 1): 6079,
    (15, 7, 3, 33, 2): 1189,
    (14, 3, 1, 1, 1): 237,
}


@pytest.mark.parametrize(("shape", "cycles"), REPORTED.items())
def test_reported_cycles_are_those_of_the_tool(shape, cycles):
    size, kernel, channels, filters, stride = shape
    layer = Layer(
        name="layer",
        c_in=channels,
        c_out=filters,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        in_size=(size, size),
    )
    assert folds(layer, rows=32, cols=32).reported == cycles
    groups = dataclasses.replace(layer, c_in=4 * channels, c_out=4 * filters, groups=4)
    assert folds(groups, rows=32, cols=32).reported == 4 * cycles


@settings(max_examples=100, deadline=None)
@given(mapped())
def test_causes_add_up_to_the_difference(case):
    spec, layer, mapping = case
    run = LayerRun(layer, mapping, layer_cycles(*case), layer_actions(*case))
    found = causes(spec, run)
    stepped = simulate(*case)
    ours = stepped.compute + stepped.bubble + stepped.weights
    assert array_cycles(run) == ours
    assert found.total == folds(layer, rows=spec.rows, cols=spec.cols).cycles - ours
    assert min(found.groups, found.overlap) >= 0
    assert max(found.weight_port, found.reloads) <= 0


def test_what_does_not_apply_is_no_cause():
    spec = dataclasses.replace(preset("ws-16"), weight_port_bits=128)
    layer = Layer(name="conv", c_in=32, c_out=32, kernel=(3, 3), padding=(1,) * 4, in_size=(8, 8))
    mapping = Mapping(tile_rows=8)

    def split(spec=spec, layer=layer, mapping=mapping):
        run = LayerRun(layer, mapping, layer_cycles(spec, layer, mapping), layer_actions(spec, layer, mapping))
        return {key: n for key, n in dataclasses.asdict(causes(spec, run)).items() if n}

    # 36 folds of 64 cycles, each longer than the pipeline: only the last drains.
    depth = 2 + 1 + 1 + 1 + 1
    fill_drain = 36 * 30 - depth
    assert split() == {"fill_drain": fill_drain}
    assert split(mapping=Mapping(tile_rows=8, overlapped=True)) == {"overlap": 35 * 16, "fill_drain": fill_drain}
    assert split(mapping=Mapping(tile_rows=4)) == {"reloads": -36 * 16, "fill_drain": fill_drain}
    narrow = dataclasses.replace(spec, weight_port_bits=64)
    assert split(spec=narrow) == {"weight_port": -36 * 16, "fill_drain": fill_drain}
    # 20 channels take 2 steps for each of 9 points, im2col 12 folds for 180; 4 of 32 rows are used in the second step.
    few = dataclasses.replace(layer, c_in=20)
    each = 2 * 16 + 16 + 64 - 2
    assert split(layer=few) == {
        "im2col": (12 - 18) * 2 * each,
        "unused_rows": 9 * 2 * 12,
        "fill_drain": 36 * 30 - depth,
    }
    # 16 groups of one channel on the diagonal instead of 32 one after the other.
    depthwise = dataclasses.replace(layer, groups=32)
    found = split(layer=depthwise)
    assert found["groups"] == 30 * each
    assert found["im2col"] == 2 * (1 - 9) * each


#: First line of a file that SCALE-Sim 3.0.0 wrote.
WRITTEN = (
    "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, "
    "Compute Util %,"
)


def test_a_report_is_read_back():
    run = run_network(preset("ws-32"), RESNET)
    lines = report_csv(run).splitlines()
    assert lines[0] == WRITTEN
    assert {line.count(",") for line in lines} == {WRITTEN.count(",")}
    rows = [[float(cell) for cell in line.split(", ")] for line in (line.removesuffix(",") for line in lines[1:])]
    assert rows == [list(row.values()) for row in compute_report(run)]
    for i, (each, row) in enumerate(zip(run.layers, rows, strict=True)):
        number, prefetched, total, stalls, overall, mapping, compute = row
        assert (number, prefetched) == (i, each.cycles.total)
        assert each.cycles.total > total >= total - stalls == array_cycles(each)
        assert overall == pytest.approx(100 * each.layer.dense_macs / (total * 32 * 32))
        assert 0 < overall <= compute < mapping <= 100
    assert rows[3][5] == 100


def test_prefetched_input_and_output_written_back_are_outside_of_total_cycles():
    spec = dataclasses.replace(preset("ws-32"), dram_gbytes_per_s=1e6)
    run = run_network(spec, [RESNET[3]])
    assert run.layers[0].mapping.tile_rows == 7
    (row,) = compute_report(run)
    # 8 bytes of 512 channels of 49 positions a cycle, in and out; 32 rows of 32 weights, 16 a cycle.
    outside = (49 * 512 // 8 - 32 * 32 // 16) + 49 * 512 // 8
    assert row["Total Cycles (incl. prefetch)"] - row["Total Cycles"] == outside


def test_shapes_pass_through_a_topology_file(tmp_path):
    grouped = Layer(name="dw", c_in=6, c_out=12, groups=3, kernel=(3, 2), padding=(1, 0, 0, 1), in_size=(9, 7))
    layers = [*RESNET, grouped]
    path = tmp_path / "net.csv"
    path.write_text(topology(layers))
    read = read_topology(path)
    assert [layer.name for layer in read[len(RESNET) :]] == ["dw.0", "dw.1", "dw.2"]
    for layer, wanted in zip(read, [*RESNET, *[grouped] * 3], strict=True):
        assert (layer.c_in, layer.c_out) == (wanted.c_in // wanted.groups, wanted.c_out // wanted.groups)
        assert (layer.kernel, layer.stride, layer.out_size) == (wanted.kernel, wanted.stride, wanted.out_size)
        # SCALE-Sim's number of positions, which it rounds up.
        sides = zip(layer.in_size, layer.kernel, layer.stride, strict=True)
        assert [-(-(n - points + step) // step) for n, points, step in sides] == list(wanted.out_size)
    cycles = [folds(layer, rows=32, cols=32).cycles for layer in layers]
    assert sum(folds(layer, rows=32, cols=32).cycles for layer in read) == sum(cycles)


def test_layers_that_a_topology_file_cannot_say_are_listed():
    layer = Layer(name="a", c_in=4, c_out=4, kernel=(3, 3), in_size=(9, 9))
    wrong = [
        dataclasses.replace(layer, name="a,b"),
        dataclasses.replace(layer, name="convDP"),
        dataclasses.replace(layer, stride=(1, 2)),
        layer,
        dataclasses.replace(layer, name="wide", dilation=(2, 2)),
    ]
    with pytest.raises(ConfigError) as error:
        topology(wrong)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        "layer 'a,b'",
        "layer 'convDP'",
        "layer 'a'",
        "layer 'wide'",
    ]
    assert topology([dataclasses.replace(layer, kernel=(1, 1), dilation=(2, 2))]).splitlines()[1] == (
        "a, 9, 9, 1, 1, 4, 4, 1,"
    )


def test_rows_of_a_wide_array_take_several_cycles_of_the_port():
    spec = preset("ws-64")
    mapping, cycles, actions = best_mapping(spec, RESNET[3])
    assert (mapping.a, mapping.b, mapping.d) == (1, 1, 1)
    found = causes(spec, LayerRun(RESNET[3], mapping, cycles, actions))
    # A row of 64 weights takes 4 cycles at 128 bits: 72 x 8 folds of 64 rows.
    assert found.weight_port == -3 * 64 * 72 * 8


HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


def test_a_run_in_the_columns_of_the_report(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(HEADER + "one, 18, 18, 3, 3, 16, 32, 1,\ntwo, 16, 16, 1, 1, 32, 16, 1,\n")
    done = CliRunner().invoke(app, ["simulate", str(path), "--arch", "ws-16", "--scale-sim"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0])[:3] == ("LayerID", "Total Cycles (incl. prefetch)", "Total Cycles")
    assert [row["LayerID"] for row in rows] == ["0", "1"]
    assert all(float(row["Overall Util %"]) <= float(row["Mapping Efficiency %"]) <= 100 for row in rows)
