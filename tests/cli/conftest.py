"""A tiny model and data that commands can name as `package.module:callable`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

SOURCE = """
import torch
from torch import nn

def net(num_classes=4):
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
    )

def data(split="val", batch_size=64):
    generator = torch.Generator().manual_seed(1 if split == "val" else 2)
    labels = torch.arange(48) % 4
    images = torch.randn(48, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(batch_size), labels.split(batch_size)))

def once():
    return iter(data())

def broken():
    raise KeyboardInterrupt
"""

Mvq = Callable[..., Result]


@pytest.fixture
def mvq() -> Mvq:
    """Run a command line; arguments may be paths."""
    from mvq.cli.app import app

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder with the module `tinycli`."""
    (tmp_path / "tinycli.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tinycli", None)
