"""Fine-tuning of codewords: assignments and masks stay, codewords follow masked gradients (MVQ).

The paper states neither epochs nor learning rates. The defaults are Adam at 1e-3 with cosine decay to zero,
as the codebook fine-tuning of PQF (Martinez et al., CVPR 2021) starts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mvq.errors import ConfigError, DataError, ModelError
from mvq.nn import LearnedCodebook, unwrap
from mvq.progress import track

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


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


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int = 1,
    max_steps: int | None = None,
    lr: float = 1e-3,
    optimizer: str | OptimizerFactory = "adam",
    schedule: str | None = "cosine",
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    device: torch.device | str | None = None,
    train_other: bool = True,
    bn_eval: bool = False,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> list[EpochRecord]:
    """Train a model: codewords of a clustered one, kept weights of a pruned one, all weights of a dense one.

    Args:
        model: changed in place; its modules' train/eval modes and its parameters' `requires_grad` are as
            before afterwards.
        train_loader: yields `(inputs, targets)`; gone through once an epoch.
        epochs: passes over the loader.
        max_steps: stop after this many steps in all.
        lr: learning rate.
        optimizer: `adam`, `adamw`, `sgd` (momentum 0.9), or a function from a list of parameters to an
            optimizer.
        schedule: `cosine` to zero over all steps, or None. Without a length of the loader, `cosine` needs
            `max_steps`.
        loss_fn: `(outputs, targets)` to a scalar; cross entropy by default.
        device: where to train; the model is moved there. None: where its parameters are.
        train_other: train everything that is not a codebook too (batch norm, biases, int8 and uncompressed
            weights).
        bn_eval: keep batch norm statistics as they are.
        progress: show a bar.
        on_step: called with `(step, loss)` after each step, from 0.

    Returns:
        One record an epoch.

    Raises:
        ConfigError: on an option out of range, or if `train_other=False` leaves nothing to train.
        DataError: if the loader yields no batch, or not pairs.
        ModelError: if the loss is NaN or infinite, naming the step; the model keeps the weights of that step.
    """
    _check(epochs, max_steps, lr, optimizer, schedule)
    if device is not None:
        model.to(device)
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    loss_fn = loss_fn or nn.functional.cross_entropy
    with _prepared(model, train_other, bn_eval) as parameters:
        optim = _OPTIMIZERS[optimizer](parameters, lr) if isinstance(optimizer, str) else optimizer(parameters)
        total = _total_steps(train_loader, epochs, max_steps)
        scheduler = _scheduler(optim, schedule, total)
        history: list[EpochRecord] = []
        step = 0
        while len(history) < epochs and (max_steps is None or step < max_steps):
            losses: list[float] = []
            rate = lr
            bar = track(
                train_loader,
                f"epoch {len(history) + 1}/{epochs}",
                total=_length(train_loader),
                enabled=progress,
            )
            with contextlib.closing(bar) as batches:  # type: ignore[type-var]
                for batch in batches:
                    rate = optim.param_groups[0]["lr"]
                    losses.append(_step(model, batch, optim, loss_fn, place, step, len(history)))
                    if scheduler is not None:
                        scheduler.step()
                    if on_step is not None:
                        on_step(step, losses[-1])
                    step += 1
                    if step == max_steps:
                        break
            if not losses:
                raise DataError(
                    f"train_loader yields no batch in epoch {len(history)}; give it data, or a list, not a "
                    "used-up iterator"
                )
            history.append(EpochRecord(len(history), len(losses), sum(losses) / len(losses), rate))
    return history


def _step(
    model: nn.Module,
    batch: Any,
    optim: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Any], Tensor],
    place: torch.device,
    step: int,
    epoch: int,
) -> float:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise DataError(
            f"train_loader yields a {type(batch).__name__}, expected pairs (inputs, targets); "
            f"write your own loop for other data"
        )
    inputs, targets = (_to(part, place) for part in batch)
    optim.zero_grad(set_to_none=True)
    loss = loss_fn(model(inputs), targets)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError(
            f"finetune: the loss is {value} at step {step} (epoch {epoch}); lower the learning rate or check the data"
        )
    loss.backward()
    optim.step()
    return value


def _to(part: Any, place: torch.device) -> Any:
    if isinstance(part, Tensor):
        return part.to(place, non_blocking=True)
    if isinstance(part, dict):
        return {k: _to(v, place) for k, v in part.items()}
    if isinstance(part, (list, tuple)):
        return type(part)(_to(v, place) for v in part)
    return part


def _check(epochs: int, max_steps: int | None, lr: float, optimizer: Any, schedule: Any) -> None:
    faults = []
    if epochs < 1:
        faults.append(f"finetune: epochs={epochs} is not at least 1")
    if max_steps is not None and max_steps < 1:
        faults.append(f"finetune: max_steps={max_steps} is not at least 1; leave it out for no limit")
    if not (math.isfinite(lr) and lr > 0):
        faults.append(f"finetune: lr={lr} is not positive and finite")
    if not callable(optimizer) and optimizer not in _OPTIMIZERS:
        faults.append(f"finetune: optimizer={optimizer!r} is not one of {', '.join(_OPTIMIZERS)}, nor a function")
    if schedule not in ("cosine", None):
        faults.append(f"finetune: schedule={schedule!r} is not 'cosine' or None")
    if faults:
        raise ConfigError("\n".join(faults))


@contextlib.contextmanager
def _prepared(model: nn.Module, train_other: bool, bn_eval: bool) -> Iterator[list[nn.Parameter]]:
    """Training mode and the parameters to train; both put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    flags = {p: p.requires_grad for p in model.parameters()}
    codebooks = {p for m in unwrap(model).modules() if isinstance(m, LearnedCodebook) for p in m.parameters()}
    if not train_other:
        for parameter in flags:
            parameter.requires_grad_(parameter in codebooks and flags[parameter])
    parameters = [p for p in flags if p.requires_grad]
    try:
        if not parameters:
            raise ConfigError(
                "finetune: no parameter to train; with train_other=False a model needs codebooks, so call "
                "cluster_ first, "
                "and none may be frozen"
            )
        model.train()
        if bn_eval:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        yield parameters
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _length(loader: Iterable[Any]) -> int | None:
    # A DataLoader over an iterable data set has the method and raises TypeError.
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        return None


def _total_steps(loader: Iterable[Any], epochs: int, max_steps: int | None) -> int | None:
    length = _length(loader)
    if length is None:
        return max_steps
    return min(epochs * length, max_steps or epochs * length)


def _scheduler(optim: torch.optim.Optimizer, schedule: str | None, total: int | None) -> Any:
    if schedule is None:
        return None
    if total is None:
        raise ConfigError("finetune: schedule='cosine' needs the number of steps; set max_steps or schedule=None")
    return torch.optim.lr_scheduler.CosineAnnealingLR(optim, T_max=max(total, 1))
