"""The report on simulated machines: one closed, well-formed file whose numbers are those of the models."""

from __future__ import annotations

import html.parser
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.accel.cost import Area, AreaEntry, Bill, CostTable, Entry, area, energy
from mvq.accel.cycle import run_network
from mvq.accel.spec import PRESETS, AcceleratorSpec, preset
from mvq.accel.workload import Layer
from mvq.errors import ConfigError, FileError, MissingDependencyError
from mvq.patterns import Pattern
from mvq.report.drawing import BLUE, ORANGE, stacked_bars
from mvq.report.machine import (
    Gains,
    Simulated,
    energy_table,
    layer_table,
    render_machine_report,
    specification_table,
    summary_table,
    traffic_table,
    write_machine_report,
)
from mvq.report.machine_figures import l2_gbytes_per_s, machine_figures, peak_gmacs, roofline_points

TABLE = CostTable.load("cited")
NETWORK = (
    Layer(name="first", c_in=3, c_out=32, kernel=(3, 3), in_size=(18, 18)),
    Layer(name="second", c_in=32, c_out=64, kernel=(3, 3), in_size=(16, 16), compressed=True, pattern=Pattern(4, 16)),
    Layer(name="depthwise", c_in=64, c_out=64, groups=64, kernel=(3, 3), in_size=(14, 14)),
    Layer(name="last", c_in=64, c_out=10),
)


def simulated(spec: AcceleratorSpec, layers: tuple[Layer, ...] = NETWORK) -> Simulated:
    run = run_network(spec, layers)
    return Simulated(run=run, bill=energy(run, TABLE), area=area(spec, TABLE))


@pytest.fixture(scope="module")
def runs() -> list[Simulated]:
    return [simulated(preset(name)) for name in ("ws-16", "ews-16", "ews-cms-16")]


class Page(html.parser.HTMLParser):
    """Tags in order, links and ids; an end tag must close the last one that is open."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "srcset", "href", "xlink:href", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("n", [1, 3])
def test_page_is_one_closed_file(runs: list[Simulated], n: int, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    n_bytes = write_machine_report(path, "small", runs[:n], table=TABLE)
    text = path.read_text(encoding="utf-8")
    assert n_bytes == path.stat().st_size
    assert render_machine_report("small", runs[:n], table=TABLE) == text
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 3 + 2 * n + 2 * (n > 1)
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    # Colours all come from the page, for light and dark.
    assert not re.search(r"#0[0-9a]0[0-9a]0[0-9a]\b", text)
    for name in set(re.findall(r"var\((--\w+)\)", text)):
        assert len(re.findall(rf"{name}:", text)) == 2, name
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_all_sources_are_on_the_page(runs: list[Simulated]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    words = set(Page(render_machine_report("small", runs[2:], table=TABLE)).words)
    one = runs[2]
    assert {entry.source for entry in (*one.bill.entries, *one.area.entries)} <= words
    assert {each.layer.name for each in one.run.layers} <= words
    assert any("table cited at 40 nm, 0.99 V" in " ".join(word.split()) for word in words)


def test_summary_has_the_four_efficiencies_in_order() -> None:
    spec = preset("ews-cms-16")
    entries = (Entry("array", "multiplications", 100, 2.0, "a"), Entry("DRAM", "bytes", 10, 30.0, "b"))
    one = simulated(spec)
    bill = Bill(entries, one.run.seconds, 1000, 250)
    table = summary_table([replace(one, bill=bill, area=Area((AreaEntry("L2", "memory", 2, 1e6, "c"),)))])
    row = dict(zip(table.headers, table.rows[0], strict=True))
    assert row["executed TOPS/W without DRAM"] == "2.500"
    assert row["dense-equivalent TOPS/W without DRAM"] == "10.000"
    assert row["executed TOPS/W with DRAM"] == "1.000"
    assert row["dense-equivalent TOPS/W with DRAM"] == "4.000"
    assert (row["array area (mm²)"], row["total area (mm²)"]) == ("0.000", "2.000")


def test_gains_are_of_the_other_over_this() -> None:
    first, second = simulated(preset("ews-16")), simulated(preset("ews-16"))

    def costing(one: Simulated, chip: float, dram: float, array: float, memory: float) -> Simulated:
        entries = (Entry("array", "x", 1, chip, ""), Entry("DRAM", "bytes", 1, dram, ""))
        parts = (AreaEntry("array", "x", 1, array, ""), AreaEntry("L2", "memory", 1, memory, ""))
        return replace(one, bill=replace(one.bill, entries=entries), area=Area(parts))

    first, second = costing(first, 6, 6, 8, 4), costing(second, 2, 4, 2, 4)
    slower = replace(second, run=replace(second.run, layers=second.run.layers * 2))
    expected = Gains(speed_up=0.5, energy=3, energy_with_dram=2, array_area=4, total_area=2)
    assert slower.gains_over(first) == expected
    assert first.gains_over(first) == Gains(speed_up=1, energy=1, energy_with_dram=1, array_area=1, total_area=1)


def test_columns_add_up(runs: list[Simulated]) -> None:
    for one in runs:
        for table, last in ((layer_table(one.run), "mapping"), (traffic_table(one.run), None)):
            numbers = [h for h in table.headers[1:] if h not in ("no.", "shape", "stored", "share (%)", last)]
            numbers = [h for h in numbers if "%" not in h]
            for header in numbers:
                column = [int(row[list(table.headers).index(header)].replace(",", "")) for row in table.rows]
                assert sum(column[:-1]) == column[-1], header
        table = layer_table(one.run)
        for row in table.rows:
            cells = dict(zip(table.headers, row, strict=True))
            causes = [int(cells[c].replace(",", "")) for c in ("compute", "bubble", "weights", "memory", "dram")]
            assert sum(causes) == int(cells["cycles"].replace(",", ""))
            assert float(cells["multipliers in use (%)"]) <= 100


def test_lines_of_energy_add_up(runs: list[Simulated]) -> None:
    table = energy_table(runs[0].bill)
    column = [float(row[4].replace(",", "")) for row in table.rows]
    assert sum(column) == pytest.approx(runs[0].bill.total_pj() * 1e-6, abs=0.0005 * len(column))


def test_rows_in_which_machines_differ_are_marked() -> None:
    spec = preset("ews-16")
    table = specification_table([spec, replace(spec, name="other", dma_bits=128)])
    assert [table.rows[i] for i in table.marked] == [["dma_bits", "64", "128"]]


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from([name for name in PRESETS if not name.endswith("-64")]),
    channels=st.tuples(st.integers(1, 96), st.integers(1, 96)),
    kernel=st.integers(1, 5),
    size=st.integers(5, 24),
    compressed=st.booleans(),
    dram=st.floats(0.05, 20),
)
def test_no_dot_lies_above_its_roof(name, channels, kernel, size, compressed, dram) -> None:
    layer = Layer(
        name="a",
        c_in=channels[0],
        c_out=channels[1],
        kernel=(kernel, kernel),
        in_size=(size, size),
        compressed=compressed,
        pattern=Pattern(4, 16) if compressed else Pattern(1, 1),
    )
    spec = replace(preset(name), dram_gbytes_per_s=dram)
    run = run_network(spec, [layer, replace(layer, c_in=channels[1])])
    for level, bandwidth in (("dram", dram), ("l2", l2_gbytes_per_s(spec))):
        for point in roofline_points(run, level):
            if point is not None:
                assert point[1] <= min(peak_gmacs(spec), point[0] * bandwidth) * (1 + 1e-9)


def test_a_roof_is_reached() -> None:
    """A layer that waits for DRAM alone lies on the line, and one that moves nothing has no dot."""
    spec = replace(preset("ews-16"), dram_gbytes_per_s=0.001)
    layers = [Layer(name=name, c_in=16, c_out=16, in_size=(16, 16)) for name in "abc"]
    first, middle, _ = roofline_points(run_network(spec, layers), "dram")
    assert middle is None
    assert first is not None
    assert first[1] == pytest.approx(first[0] * 0.001, rel=1e-4)


def test_names_of_many_layers_do_not_overlap() -> None:
    pytest.importorskip("matplotlib")
    layers = [Layer(name=f"stage.{i:02d}.conv", c_in=16, c_out=16, in_size=(8, 8)) for i in range(60)]
    text = machine_figures("m", run_network(preset("ews-16"), layers))["cycles"]
    places = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>stage\.\d\d\.conv', text)]
    assert len(places) == 60
    assert min(b - a for a, b in itertools.pairwise(places)) > 11 * 1.2


def test_bars_stay_off_the_frame() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    stacked_bars(axes, ["long", "short"], {"first": [3, 1], "none": [0, 0]}, (BLUE, ORANGE))
    left, right = axes.get_xlim()
    assert left == 0
    assert right > 3


def test_names_are_text() -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    name = 'a<b>"&$x^2$'
    layers = (replace(NETWORK[0], name=name), replace(NETWORK[1], name="very." * 12 + "long"))
    one = simulated(replace(preset("ews-cms-16"), name=name), layers)
    text = render_machine_report(f"net {name}", [one, one])
    page = Page(text)
    assert "<b>" not in text.replace('<div class="card"><b>', "")
    assert page.open == []
    assert any("$x^2$  1" in word for word in page.words)
    assert "very." * 12 + "long" in page.words


def test_faults_are_named(runs: list[Simulated]) -> None:
    with pytest.raises(ConfigError, match="there is no machine in it"):
        render_machine_report("small", [])
    other = simulated(preset("ews-16"), NETWORK[:2])
    with pytest.raises(ConfigError, match="'ws-16' and 'ews-16' ran different layers"):
        render_machine_report("small", [runs[0], other])


def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    runs: list[Simulated], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    with pytest.raises(FileError, match="cannot write"):
        write_machine_report(tmp_path / "none" / "report.html", "small", runs[:1])
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(FileError, match="full"):
        write_machine_report(path, "small", runs[:1])
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("report.html", "old")]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(runs: list[Simulated], package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"reports need {package}: pip install"):
        render_machine_report("small", runs[:1])
