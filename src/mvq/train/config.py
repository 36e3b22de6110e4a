"""What a training run is set to, checked as a whole, and the records it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvq.errors import ConfigError

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups),
    "adamw": lambda groups: torch.optim.AdamW(groups),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
}
_WHERE_ONLY = ("checkpoint", "checkpoint_every", "resume")


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training.

    Attributes:
        epoch: from 0.
        n_steps: optimizer steps made.
        loss: mean over its steps.
        lr: learning rate of its last step.
    """

    epoch: int
    n_steps: int
    loss: float
    lr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The options of `finetune`, which documents them.

    Raises:
        ConfigError: listing every fault at once.
    """

    epochs: int = 1
    max_steps: int | None = None
    lr: float = 1e-3
    optimizer: str | OptimizerFactory = "adam"
    schedule: str | None = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    codebook_lr: float = 1.0
    train_other: bool = True
    bn_eval: bool = False
    ema: float | None = None
    grad_clip: float | None = None
    autocast: str | None = None
    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        faults = [*_range_faults(self), *_choice_faults(self)]
        if faults:
            raise ConfigError("\n".join(f"finetune: {fault}" for fault in faults))

    def describe(self) -> dict[str, str]:
        """What decides the result, as text; functions by name."""
        return {f.name: _text(getattr(self, f.name)) for f in fields(self) if f.name not in _WHERE_ONLY}


def _text(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else repr(value)


def _range_faults(config: TrainConfig) -> list[str]:
    faults = []
    if config.epochs < 1:
        faults.append(f"epochs={config.epochs} is not at least 1")
    if config.max_steps is not None and config.max_steps < 1:
        faults.append(f"max_steps={config.max_steps} is not at least 1; leave it out for no limit")
    for name in ("lr", "codebook_lr", "grad_clip"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            faults.append(f"{name}={value} is not positive and finite")
    if config.warmup_steps < 0:
        faults.append(f"warmup_steps={config.warmup_steps} is negative")
    if not 0 <= config.weight_decay < math.inf:
        faults.append(f"weight_decay={config.weight_decay} is not at least 0 and finite")
    if config.ema is not None and not 0 < config.ema < 1:
        faults.append(f"ema={config.ema} is not between 0 and 1; near 1 averages over more steps, as 0.999")
    if config.checkpoint_every is not None and config.checkpoint_every < 1:
        faults.append(f"checkpoint_every={config.checkpoint_every} is not at least 1")
    return faults


def _choice_faults(config: TrainConfig) -> list[str]:
    faults = []
    if not callable(config.optimizer) and config.optimizer not in OPTIMIZERS:
        faults.append(f"optimizer={config.optimizer!r} is not one of {', '.join(OPTIMIZERS)}, nor a function")
    if callable(config.optimizer) and (config.weight_decay != 0 or config.codebook_lr != 1):
        faults.append("weight_decay and codebook_lr are for optimizers given by name; set them in your function")
    if config.schedule not in ("cosine", None):
        faults.append(f"schedule={config.schedule!r} is not 'cosine' or None")
    if config.autocast not in ("bfloat16", None):
        faults.append(f"autocast={config.autocast!r} is not 'bfloat16' or None")
    if config.checkpoint_every is not None and config.checkpoint is None:
        faults.append(f"checkpoint_every={config.checkpoint_every} without checkpoint; name the file")
    return faults
