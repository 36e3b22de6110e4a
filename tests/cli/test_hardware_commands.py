"""`mvq rtl`, `mvq cosim` and `mvq synth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CELLS = Path(__file__).parent.parent / "accel" / "cells.lib"
MACHINE = 'preset = "ews-cms-16"\nname = "small"\nrows = 4\nn_codewords = 16\npattern = "2:4"\n'
COMPRESS = (
    "compress",
    "tinycli:net",
    "-o",
    "net.mvq",
    "--set",
    "n_codewords=16",
    "--set",
    "pattern=2:4",
    "--device",
    "cpu",
)


@pytest.fixture
def machine(workdir: Path) -> Path:
    path = workdir / "small.toml"
    path.write_text(MACHINE)
    return path


def test_rtl(mvq, machine: Path, tmp_path: Path) -> None:
    done = mvq("rtl", "--arch", machine, "--arch", "ws-16", "-o", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert [row["file"] for row in json.loads(done.stdout)] == [str(tmp_path / f"{n}.sv") for n in ("small", "ws-16")]
    assert (tmp_path / "small.sv").read_text().startswith("// small: a machine for networks")
    missing = mvq("rtl", "-o", tmp_path / "none")
    assert missing.exit_code == 1
    assert "is no folder; make it first" in missing.stderr


def test_cosim(mvq, machine: Path, rtl_folder: Path) -> None:
    assert mvq(*COMPRESS).exit_code == 0
    arguments = ("--model", "tinycli:net", "-d", "tinycli:data", "--device", "cpu")
    assert mvq("export", "net.mvq", *arguments, "-o", "int.mvq").exit_code == 0
    command = ("cosim", "int.mvq", "--arch", machine, "-d", "tinycli:data", "--build", rtl_folder)
    done = mvq(*command, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 3
    assert all(row["wrong"] == 0 and row["cycles"] == row["modelled"] > 0 for row in rows)
    assert all(row["inputs"] == row["modelled_inputs"] > 0 for row in rows)
    stalled = mvq(*command, "--stalls", 0.5, "--layer", rows[1]["layer"])
    assert stalled.exit_code == 0, stalled.output
    on_gates = mvq(*command, "--layer", rows[1]["layer"], "--liberty", CELLS, "--json")
    assert on_gates.exit_code == 0, on_gates.output
    spent = json.loads(on_gates.stdout)[0]["gates"]
    assert spent["sums"] == rows[1]["sums"]
    assert spent["cycles"] > rows[1]["cycles"]
    assert spent["longest_ns"] < spent["period_ns"] == pytest.approx(1e3 / 300)
    assert {"tile rows", "adder trees", "codebook"} <= {part["name"] for part in spent["parts"]}
    shown = mvq(*command, "--layer", rows[1]["layer"], "--liberty", CELLS)
    assert "tile rows: registers" in shown.stdout
    for more, fault in (
        (("--layer", "none"), "--layer 'none' is not one of "),
        (("--liberty", CELLS), "--liberty is for one layer; name it with --layer"),
        (("--waves", "w.vcd"), "--waves is for one layer; name it with --layer"),
        (("--waves", "none/w.vcd", "--layer", rows[0]["layer"]), "--waves 'none/w.vcd': there is no folder"),
    ):
        wrong = mvq(*command, *more)
        assert wrong.exit_code == 1
        assert fault in wrong.stderr


def test_synth(mvq, machine: Path) -> None:
    command = ("synth", "--arch", "ws-16", "--arch", machine, "--top", "mvq_adder_tree", "--liberty", CELLS)
    done = mvq(*command, "--json")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)
    assert (first["machine"], second["machine"], first["liberty"]) == ("ws-16", "small", "cells")
    assert first["total_um2"] > second["total_um2"] > 0
    assert "longest_path_ns" not in first
    shown = mvq(*command).stdout
    assert f"{first['total_um2'] * 1e-6:.4f}" in shown
    timed = json.loads(mvq(*command, "--timing", "--json").stdout)
    # More rows make a deeper tree.
    assert timed[0]["gates_on_it"] > timed[1]["gates_on_it"] > 4
    assert timed[0]["longest_path_ns"] > timed[1]["longest_path_ns"] > 0
    assert "longest path, ns" in mvq(*command, "--timing").stdout
    wrong = mvq("synth", "--liberty", machine)
    assert wrong.exit_code == 1
    assert "is not Liberty" in wrong.stderr
