"""SCALE-Sim's model and columns."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mvq.accel.cycle import run_network
from mvq.accel.cycle.scalesim import REPORT, compute_report, difference, weight_stationary
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.cli.app import app

HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


@st.composite
def layers(draw):
    groups = draw(st.sampled_from([1, 1, 3]))
    return Layer(
        name="layer",
        c_in=groups * draw(st.integers(1, 20)),
        c_out=groups * draw(st.integers(1, 20)),
        groups=groups,
        kernel=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        in_size=(draw(st.integers(3, 6)), draw(st.integers(3, 6))),
    )


def stepped(layer, rows, columns):
    """Cycle by cycle: a fold loads its rows, then the last product leaves the last column of the last row."""
    cycles = 0
    depth = layer.c_in // layer.groups * layer.n_points
    for _ in range(layer.groups):
        for _ in range(0, layer.c_out // layer.groups, columns):
            for _ in range(0, depth, rows):
                cycles += rows
                leaves = [t + row + column for t in range(layer.n_positions) for row in (0, rows - 1)
                          for column in (0, columns - 1)]  # fmt: skip
                cycles += max(leaves) + 1
    return cycles


@given(layers(), st.integers(1, 9), st.integers(1, 9))
def test_the_closed_form_is_the_stepped_one(layer, rows, columns):
    found = weight_stationary(layer, rows, columns)
    assert found.total == stepped(layer, rows, columns)
    assert found.total == found.folds * (2 * rows + columns + layer.n_positions - 2)


@given(layers())
def test_causes_add_up_to_the_difference(layer):
    spec = preset("ws-16")
    cycles = run_network(spec, [layer]).layers[0].cycles
    theirs = weight_stationary(layer, spec.rows, spec.cols)
    parts = difference(cycles, theirs)
    assert sum(parts.values()) == cycles.compute + cycles.bubble + cycles.weights - theirs.total
    # A layer without groups whose channels fill the rows is cut in the same way.
    if layer.groups == 1 and layer.c_in % spec.rows == 0:
        assert parts["rows"] == 0


def test_a_run_in_the_columns_of_the_report(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(HEADER + "one, 18, 18, 3, 3, 16, 32, 1,\ntwo, 16, 16, 1, 1, 32, 16, 1,\n")
    done = CliRunner().invoke(app, ["simulate", str(path), "--arch", "ws-16", "--scale-sim"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert tuple(rows[0]) == REPORT
    assert [row["LayerID"] for row in rows] == ["0", "1"]
    assert all(float(row["Overall Util %"]) <= float(row["Mapping Efficiency %"]) <= 100 for row in rows)
    layer = Layer(name="one", c_in=16, c_out=32, kernel=(3, 3), in_size=(18, 18))
    (first,) = compute_report(run_network(preset("ws-16"), [layer]))
    assert float(first["Mapping Efficiency %"]) == 100
