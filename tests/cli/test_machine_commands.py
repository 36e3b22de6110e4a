"""Area and HTML reports of the commands that model machines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from mvq.accel.cost import CostTable, area
from mvq.accel.spec import preset

TOPOLOGY = "Layer, H, W, R, S, C, K, stride\nfirst, 18, 18, 3, 3, 3, 32, 1\nsecond, 16, 16, 3, 3, 32, 64, 1\n"


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(TOPOLOGY)
    return path


def test_simulate_tells_area(mvq, topology: Path) -> None:
    spec = preset("ews-cms-16")
    expected = area(spec, CostTable.load("cited"))
    found = json.loads(mvq("simulate", topology, "--arch", spec.name, "--json").stdout)
    assert (found["array_mm2"], found["total_mm2"]) == (expected.array_mm2, expected.total_mm2)
    rows = list(csv.DictReader(io.StringIO(mvq("simulate", topology, "--arch", spec.name, "--csv").stdout)))
    assert [float(row["array_mm2"]) for row in rows] == [expected.array_mm2] * 2
    assert [float(row["total_mm2"]) for row in rows] == [expected.total_mm2] * 2
    shown = mvq("simulate", topology, "--arch", spec.name, "--explain").stdout
    assert f"area: array {expected.array_mm2:.3f} mm2, total {expected.total_mm2:.3f} mm2" in shown
    assert expected.explain() in shown


def test_compare_tells_area(mvq, topology: Path) -> None:
    machines = ("compare", topology, "--arch", "ews-16", "--arch", "ews-cms-16")
    rows = json.loads(mvq(*machines, "--json").stdout)
    for row in rows:
        expected = area(preset(row["machine"]), CostTable.load("cited"))
        assert (row["array_mm2"], row["total_mm2"]) == (expected.array_mm2, expected.total_mm2)
    printed = list(csv.DictReader(io.StringIO(mvq(*machines, "--csv").stdout)))
    assert [float(row["total_mm2"]) for row in printed] == [row["total_mm2"] for row in rows]
    shown = mvq(*machines).stdout
    assert "array mm2" in shown
    assert f"{rows[1]['total_mm2']:.2f}" in shown


def test_gains_of_a_comparison(mvq, topology: Path) -> None:
    machines = ("compare", topology, "--pattern", "4:16", "--arch", "ews-16", "--arch", "ews-cms-16", "--json")
    first, second = json.loads(mvq(*machines).stdout)
    assert (first["speed_up"], first["energy_gain"], first["energy_gain_with_dram"]) == (1, 1, 1)
    assert second["speed_up"] == pytest.approx(first["ms"] / second["ms"])
    assert second["energy_gain"] == pytest.approx(first["chip_uj"] / second["chip_uj"])
    total = [row["chip_uj"] + row["dram_uj"] for row in (first, second)]
    assert second["energy_gain_with_dram"] == pytest.approx(total[0] / total[1])


@pytest.mark.parametrize(
    "command", [("simulate", "--arch", "ews-16"), ("compare", "--arch", "ews-16", "--arch", "ws-16")]
)
def test_html(mvq, topology: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    result = mvq(*command, topology, "--html", path, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert f"mvq: wrote {path}, {path.stat().st_size:,} bytes" in result.stderr
    text = path.read_text(encoding="utf-8")
    assert "small on " in text
    assert all(name in text for name in command[2::2])
    assert "table cited" in text
    result = mvq(*command, topology, "--html", tmp_path / "none" / "report.html")
    assert result.exit_code == 1
    assert "--html" in result.stderr
    assert "there is no folder" in result.stderr
