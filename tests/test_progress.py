from __future__ import annotations

import pytest

from mvq.progress import track


@pytest.mark.parametrize("enabled", [True, False])
def test_yields_everything_and_writes_nothing_where_nobody_looks(enabled: bool, capsys) -> None:
    assert list(track(range(5), "working", enabled=enabled)) == [0, 1, 2, 3, 4]
    assert list(track((i for i in "ab"), "working", total=2, enabled=enabled)) == ["a", "b"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_is_lazy() -> None:
    taken = []
    items = track((taken.append(i) or i for i in range(3)), "working", enabled=False)
    assert taken == []
    assert next(items) == 0
    assert taken == [0]


def test_bar_goes_to_standard_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert list(track([1, 2], "counting sheep")) == [1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting sheep" in captured.err
