"""Progress bars for long work, on standard error, and only where a person is looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yield the items while a bar with elapsed and remaining time shows how far they are.

    Args:
        items: what to go through.
        description: text left of the bar.
        total: number of items, where `len` does not tell.
        enabled: False for no bar. A standard error that is no terminal never gets one.
    """
    if not enabled:
        yield from items
        return
    with make_progress() as progress:
        yield from progress.track(items, total=total, description=description)


def make_progress(*more: str) -> Progress:
    """A bar with count, elapsed and remaining time, on standard error, shown only where that is a terminal.

    Args:
        more: texts between count and times, which may name fields of a task.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *map(TextColumn, more),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
