from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mvq.cli.app import app

TOML = """
title = "Tiny"
train = "tinybench:data"
methods = ["A", "tinybench:failing"]
reference = "A"
[evaluate]
val = "tinybench:data"
[networks.net]
model = "tinybench:net"
[recipe]
scope = "network"
[[sizes]]
ratio = 16
pattern = "4:16"
d = 16
[budget]
n_steps = 2
batch_size = 48
[output]
rows = "rows.csv"
work = "work"
report = "results.md"
images = "img"
"""


def _mvq(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "accuracy", *arguments])


def test_command(workdir: Path) -> None:
    pytest.importorskip("matplotlib")
    Path("cli.toml").write_text(TOML)
    done = _mvq("cli.toml", "--only", "A")
    assert done.exit_code == 0
    assert "mvq: [1/1] net 16x A seed 0: val " in done.stderr
    assert done.stdout.startswith("| method | net 16x |\n")
    failed = _mvq("cli.toml", "--json")
    assert failed.exit_code == 1
    assert "mvq: 1 of 2 rows failed; run again to retry them" in failed.stderr
    assert json.loads(failed.stdout)["failed"] == 1
    report = Path("results.md").read_bytes()
    assert _mvq("cli.toml", "--report-only").exit_code == 0
    assert Path("results.md").read_bytes() == report


def test_wrong_use(workdir: Path) -> None:
    Path("cli.toml").write_text(TOML)
    wrong = _mvq("cli.toml", "--only", "D")
    assert wrong.exit_code == 1
    assert "mvq: error: study 'cli' has no method D; it has A, tinybench:failing" in wrong.stderr
    Path("bad.toml").write_text(TOML + "\n[recipes]\n")
    assert "study 'bad': unknown keys ['recipes'], missing keys []; known are name, title" in _mvq("bad.toml").stderr
