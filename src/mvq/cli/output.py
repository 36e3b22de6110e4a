"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mvq.sizes import Size

#: Convention -> what it counts, in words.
CONVENTIONS = {
    "compressed_convs": "vector-quantized convolutions",
    "plus_first_conv": "+ other convolutions",
    "plus_classifier": "+ linear layers",
    "whole_model": "+ all other state",
    "on_disk": "file",
}


def console() -> Console:
    """Standard output; without a terminal as wide as the content, so that pipes and files lose nothing."""
    return Console(width=None if sys.stdout.isatty() else 2000, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line for people on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text))


def print_json(value: Any) -> None:
    """One JSON value on standard output; numbers that JSON does not have become null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False))  # noqa: T201


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sizes_json(sizes: Mapping[str, Size]) -> dict[str, dict[str, float]]:
    """`{convention: {bytes, ratio}}`."""
    return {name: {"bytes": size.bytes, "ratio": size.ratio} for name, size in sizes.items()}


def sizes_table(sizes: Mapping[str, Size]) -> Table:
    """Bytes and ratio under each convention."""
    table = make_table("Sizes", [("convention", "<"), ("what it counts", "<"), ("bytes", ">"), ("ratio", ">")])
    for name, size in sizes.items():
        table.add_row(name, CONVENTIONS[name], f"{size.bytes:,}", number(size.ratio, ".1f", "x"))
    return table


def make_table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """An empty table; columns are `(header, "<" or ">")`."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for header, side in columns:
        table.add_column(header, justify="right" if side == ">" else "left", overflow="fold")
    return table


def number(value: float | None, spec: str, unit: str = "") -> str:
    """A formatted number, `-` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:{spec}}{unit}"
