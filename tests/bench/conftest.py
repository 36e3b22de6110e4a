"""The tiny study's module in a folder of its own, which is the current one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_study import SOURCE, STUDY


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of a module's tests, with the module `tinybench`."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tinybench.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("tinybench", None)


@pytest.fixture
def tables() -> dict[str, Any]:
    """A copy of the study's tables to change."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in STUDY.items()}
