from __future__ import annotations

import functools
import html.parser
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvq import demo
from mvq.errors import ConfigError, MissingDependencyError

NAMES = {"mvq-4of16", "mvq-4of16-packed", "vq-4of16"}
CASES = tuple(case for case in demo.CASES if case.name in NAMES)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, demo.DemoReport]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo.run(folder, epochs=2, cases=CASES)


def test_report(outcome: tuple[Path, demo.DemoReport]) -> None:
    folder, report = outcome
    assert {case.name for case in report.cases} == NAMES
    assert report.n_test == 514
    assert report.n_weights == 288 + 18_432 + 57_344 + 144_384 + 960
    best = next(case for case in report.cases if case.name == report.best)
    assert best.after == max(case.after for case in report.cases) == report.reloaded
    for case in report.cases:
        assert (folder / case.file).stat().st_size == case.sizes["on_disk"].bytes
        assert sum(case.usage) == sum(layer.bits_mask for layer in case.layers) // 11
        assert case.flops_executed < 0.35 * report.flops_dense


def test_masked_clustering_beats_common_clustering(outcome: tuple[Path, demo.DemoReport]) -> None:
    by_name = {case.name: case for case in outcome[1].cases}
    assert by_name["mvq-4of16"].relative_sse < 0.2 * by_name["vq-4of16"].relative_sse
    assert by_name["mvq-4of16"].before > 2 * by_name["vq-4of16"].before
    assert by_name["mvq-4of16-packed"].relative_sse < by_name["mvq-4of16"].relative_sse
    assert by_name["mvq-4of16-packed"].sizes["on_disk"].bits < by_name["mvq-4of16"].sizes["on_disk"].bits


def test_dictionary_is_json(outcome: tuple[Path, demo.DemoReport]) -> None:
    data = outcome[1].to_dict()
    assert json.loads(json.dumps(data)) == data
    assert set(data["cases"][0]["sizes"]["on_disk"]) == {"bytes", "ratio"}


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")


def test_page_is_one_file(outcome: tuple[Path, demo.DemoReport], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from mvq.report import write_html

    write_html(outcome[1], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.tags.count("svg") == 5
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", text)
    for case in outcome[1].cases:
        assert case.title in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(
    outcome: tuple[Path, demo.DemoReport], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    from mvq.report import render

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError) as caught:
        render(outcome[1])
    assert str(caught.value) == f"reports need {package}: pip install 'mvq[report]'"


def test_report_with_one_plain_case_draws(outcome: tuple[Path, demo.DemoReport]) -> None:
    pytest.importorskip("matplotlib")
    from mvq.report.figures import figures

    masked = tuple(case for case in outcome[1].cases if case.name == "mvq-4of16")
    assert set(figures(replace(outcome[1], cases=masked, best="mvq-4of16"))) == {
        "accuracy",
        "tuning",
        "usage",
        "error",
        "bits",
    }


def test_command(mvq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", functools.partial(demo.run, cases=CASES[1:2]))
    out = tmp_path / "demo"
    result = mvq("demo", "-o", out, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "MVQ 4:16" in result.stdout
    assert "(the same)" in result.stdout
    assert "training the dense network" in result.stderr
    assert json.loads((out / "results.json").read_text())["best"] == "mvq-4of16"
    measured = mvq("eval", out / "mvq-4of16.mvq", "-d", "mvq.demo:digits", "--device", "cpu", "--json")
    assert measured.exit_code == 0, measured.output
    stored = json.loads((out / "results.json").read_text())["reloaded"]
    assert json.loads(measured.stdout)["value"] == stored


def test_command_without_report_packages(mvq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", functools.partial(demo.run, cases=CASES[1:2]))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = mvq("demo", "-o", tmp_path, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["report"] is None
    assert "no HTML report: reports need matplotlib: pip install 'mvq[report]'" in result.stderr


def test_digits_are_split_and_moved() -> None:
    train, test = demo.digits("train"), demo.digits("val")
    assert (len(train.labels), len(test.labels)) == (1283, 514)
    first, again = (torch.cat([x for x, _ in test]) for _ in range(2))
    assert torch.equal(first, again)
    moved = torch.cat([x for x, _ in train])
    assert moved.shape == (1283, 1, 8, 8)
    assert abs(float(train.images.mean())) < 0.01
    # Moves shift whole images by one pixel at most and fill with the background.
    background = float(moved.min())
    np.testing.assert_allclose(background, float(train.images.min()), rtol=1e-3)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        demo.digits("test")
    assert str(caught.value) == "digits: split='test' is not one of train, val"
    with pytest.raises(ConfigError) as caught:
        demo.run(tmp_path, epochs=0)
    assert str(caught.value) == "demo: epochs=0 with 7 cases; both must be at least 1"
