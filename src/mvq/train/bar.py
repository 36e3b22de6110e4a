"""A progress bar of training steps with the loss, on standard error, and only where a person is looking."""

from __future__ import annotations

from typing import Any

from mvq.progress import make_progress


class StepBar:
    """One bar at a time, with step count, loss, elapsed and remaining time.

    A context manager; the bar that `start` shows is gone at its end.

    Args:
        enabled: False for no bar. A standard error that is no terminal never gets one.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def start(self, description: str, total: int | None, done: int = 0) -> None:
        """Show a new bar."""
        if not self._enabled:
            return
        self._progress = make_progress("loss {task.fields[loss]}")
        self._task = self._progress.add_task(description, total=total, completed=done, loss="-")
        self._progress.start()

    def advance(self, loss: float) -> None:
        """One step made."""
        if self._progress is not None:
            self._progress.update(self._task, advance=1, loss=f"{loss:.4f}")
