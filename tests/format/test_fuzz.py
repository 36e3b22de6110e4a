"""Mutated files: a `FormatError` or a model, never anything else, in little time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvq.errors import FormatError


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        pytest.param(1, 2_000, id="quick"),
        pytest.param(2, 50_000, id="long-1", marks=pytest.mark.slow),
        pytest.param(3, 50_000, id="long-2", marks=pytest.mark.slow),
    ],
)
def test_mutated_files(seed: int, count: int, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), str(seed), str(count), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert sum(report["outcomes"].values()) == count
    assert report["grown_kib"] < 100 * 1024
    # The mutations reach every check, and leave some files good.
    assert set(report["outcomes"]) == {"read"} | {error.__name__ for error in FormatError.__subclasses__()}
