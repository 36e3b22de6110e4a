"""Pictures of accuracy against bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvq.bench.plot import Curve, draw


def picture(percent: dict[str, tuple[float, ...]], folder: Path) -> str:
    pytest.importorskip("matplotlib")
    curves = [Curve(name, (1e4, 2e4, 3e4), values, (0.5,) * 3) for name, values in percent.items()]
    svg, png = draw({"val": (curves, 93.0)}, folder / "a", title="net", metric="top1")
    assert png.stat().st_size > 1000
    return svg.read_text(encoding="utf-8")


def test_outliers_leave_the_panel_and_are_counted(tmp_path: Path) -> None:
    near = {"one": (90.0, 91.0, 92.0), "two": (89.0, 91.5, 92.5), "three": (90.5, 91.2, 92.1)}
    assert "below" not in picture(near, tmp_path)
    text = picture({**near, "far": (10.0, 88.0, 92.0)}, tmp_path)
    assert "1 point lies below" in text
    # Ticks of whole percents, as far as the other points reach
    assert ">90<" in text
    assert ">20<" not in text
    assert "2 points lie below" in picture({**near, "far": (10.0, 20.0, 92.0)}, tmp_path)
