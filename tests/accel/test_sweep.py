"""Sweeps over machines."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mvq.accel.cost import CostTable, energy
from mvq.accel.cycle import run_network
from mvq.accel.spec import preset
from mvq.accel.sweep import Point, grid, pareto, sweep
from mvq.accel.workload import Layer
from mvq.cli.app import app
from mvq.errors import ConfigError
from mvq.patterns import Pattern

CONV = {"kernel": (3, 3), "padding": (1, 1, 1, 1), "in_size": (14, 14)}
LAYERS = [
    Layer(name="first", c_in=3, c_out=32, **CONV),
    Layer(name="second", c_in=32, c_out=64, **CONV, compressed=True, pattern=Pattern(4, 16)),
]


def test_a_grid_has_every_combination_and_says_which_contradict_themselves():
    specs, left_out = grid(preset("ews-p-16"), {"rows": [8, 16], "d": [16, 32, 24]})
    assert [(spec.rows, spec.d) for spec in specs] == [(8, 16), (16, 16)]
    assert specs[1].name == "ews-p-16 rows=16 d=16"
    assert sum("cols=16 is not a multiple of d=32; a tile has d columns" in fault for fault in left_out) == 2
    assert sum("d=24" in fault for fault in left_out) >= 2
    with pytest.raises(ConfigError) as error:
        grid(preset("ews-16"), {"width": [1], "rows": []})
    assert str(error.value).splitlines()[0].startswith("grid: 'width' is not one of dataflow, ")
    assert str(error.value).splitlines()[1] == "grid: 'rows' has no values"
    with pytest.raises(ConfigError, match="no combination is a machine"):
        grid(preset("ews-16"), {"rows": [0]})


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_tells_what_each_machine_does(jobs):
    specs, _ = grid(preset("ews-p-16"), {"rows": [8, 16], "l1_bytes": [64, 1 << 17]})
    table = CostTable.load("cited")
    found = list(sweep(specs, LAYERS, table, objective="cycles", jobs=jobs))
    assert [isinstance(point, ConfigError) for point in found] == [True, False, True, False]
    assert "layer 'first' does not fit" in str(found[0])
    run = run_network(specs[3], LAYERS, objective="cycles")
    bill = energy(run, table)
    assert (found[3].spec, found[3].cycles) == (specs[3], run.cycles.total)
    assert found[3].total_pj == pytest.approx(bill.total_pj())
    assert found[3].chip_pj == pytest.approx(bill.total_pj(dram=False))


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12))
def test_the_pareto_front_is_what_nothing_dominates(goods):
    base = next(iter(sweep([preset("ews-16")], LAYERS, CostTable.load("cited"))))
    assert isinstance(base, Point)
    points = [dataclasses.replace(base, seconds=a, total_pj=b, total_mm2=c) for a, b, c in goods]
    front = [
        point
        for point, mine in zip(points, goods, strict=True)
        if not any(other != mine and all(x <= y for x, y in zip(other, mine, strict=True)) for other in goods)
    ]
    assert pareto(points) == front


HEADER = "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"


def test_the_command_shows_the_best_and_lists_all(tmp_path):
    path = tmp_path / "net.csv"
    path.write_text(HEADER + "one, 16, 16, 3, 3, 3, 32, 1,\ntwo, 16, 16, 3, 3, 32, 64, 1,\n")
    vary = ["--vary", "rows=16,32", "--vary", "pattern=4:16,2:8", "--vary", "zero_gating=true,false"]
    base = ["sweep", str(path), "--pattern", "4:16", "--arch", "ews-p-16"]
    done = CliRunner().invoke(app, [*base, *vary, "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 8
    assert {row["machine"] for row in rows if row["pareto"]} < {row["machine"] for row in rows}
    shown = CliRunner().invoke(app, [*base, *vary])
    assert shown.exit_code == 0
    assert all((row["machine"] in shown.stdout) == row["pareto"] for row in rows)
    lines = CliRunner().invoke(app, [*base, *vary, "--csv"]).stdout.splitlines()
    assert (len(lines), lines[0]) == (9, "machine,cycles,ms,chip_uj,total_uj,array_mm2,total_mm2,pareto")
    wrong = CliRunner().invoke(app, [*base, "--vary", "rows"])
    assert wrong.exit_code == 1
    assert "give each field once, as FIELD=VALUE,VALUE" in wrong.output
    none = CliRunner().invoke(app, [*base, "--vary", "l1_bytes=8"])
    assert none.exit_code == 1
    assert "no machine can take the network" in none.output
    assert "layer 'one' does not fit" in none.output
