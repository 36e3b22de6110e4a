"""Fine-tuning of codewords: masks stay, codewords follow masked gradients (MVQ); assignments stay or are learned.

The paper states neither epochs nor learning rates. The defaults are Adam at 1e-3 with cosine decay to zero,
as the codebook fine-tuning of PQF (Martinez et al., CVPR 2021) starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvq.errors import ConfigError
from mvq.nn import Reassign, harden_, is_soft, soften_
from mvq.train.config import EpochRecord, OptimizerFactory, TrainConfig
from mvq.train.objectives import Loss, Objective, Supervised
from mvq.train.trainer import Trainer, total_steps


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    epochs: int = 1,
    max_steps: int | None = None,
    lr: float = 1e-3,
    optimizer: str | OptimizerFactory = "adam",
    schedule: str | None = "cosine",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    codebook_lr: float = 1.0,
    loss_fn: Loss | None = None,
    objective: Objective | None = None,
    device: torch.device | str | None = None,
    train_other: bool = True,
    bn_eval: bool = False,
    ema: float | None = None,
    grad_clip: float | None = None,
    autocast: str | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    learn_assignments: bool = False,
) -> list[EpochRecord]:
    """Train a model: codewords of a clustered one, kept weights of a pruned one, all weights of a dense one.

    Under `torchrun`, or in an initialised process group, the processes train together: each takes its part of
    every batch, so the loader must yield the same batches on all of them (random states are those of process 0
    at the start of each epoch). A loader that yields each process a part of its own, equally many on all,
    says so by an attribute `sharded = True`. The loss is taken to be a mean over samples, and is that of the
    whole batch; batch norm uses its statistics; parts may be of unequal size.

    Args:
        model: changed in place; its modules' train/eval modes and its parameters' `requires_grad` are as
            before afterwards. Masks that follow the weights are those of the last weights.
        train_loader: yields `(inputs, targets)`; gone through once an epoch. A `set_epoch` of the loader or its
            sampler is called before.
        epochs: passes over the loader.
        max_steps: stop after this many steps in all.
        lr: learning rate.
        optimizer: `adam`, `adamw`, `sgd` (momentum 0.9), or a function from a list of parameters to an
            optimizer.
        schedule: `cosine` to zero over all steps after the warm-up, or None for a constant rate. Without a
            length of the loader, `cosine` needs `max_steps`.
        warmup_steps: steps over which the learning rate rises linearly to `lr`.
        weight_decay: of weights with two axes or more, dense weights beneath masks included; never of
            codebooks, their scales, norms and biases.
        codebook_lr: factor on the learning rate of codewords and their scales.
        loss_fn: `(outputs, targets)` to a scalar; cross entropy by default.
        objective: `(model, batch)` to a scalar, instead of `loss_fn`; see `Distillation`.
        device: where to train; the model is moved there. None: where its parameters are.
        train_other: train everything that is not a codebook too (batch norm, biases, int8 and uncompressed
            weights).
        bn_eval: keep batch norm statistics as they are.
        ema: decay of an exponential moving average of parameters and float buffers, 0.999 say; the model ends
            with the average.
        grad_clip: largest norm of all gradients together.
        autocast: `bfloat16` to run the model under autocast; not faster on CPUs without AVX-512.
        checkpoint: file that is written at the end of each epoch by process 0, and from which training goes on
            if it is there, where all processes must see it. Stopped at any step, training ends with the same
            bits on a CPU, as long as all that is random comes from torch, Python's `random`, NumPy's global
            state or the loader's generators, and not from workers that persist.
        checkpoint_every: write it after each so many steps too.
        resume: False: start over, whatever `checkpoint` holds.
        progress: show a bar.
        on_step: called with `(step, loss)` after each step, from 0, on every process.
        learn_assignments: let the subvectors of a clustered model change their codewords, see `mvq.nn.Reassign`; needs
            as much more memory as its kept weights in training. A model that `mvq.nn.soften_` prepared starts from the
            weights given there, another from its codewords; both end with fixed assignments.

    Returns:
        One record an epoch.

    Raises:
        ConfigError: on an option out of range, if `train_other=False` leaves nothing to train, or if assignments are to
            be learned in an unknown number of steps.
        DataError: if the loader yields no batch, or not pairs; on inputs that are NaN or infinite and on labels
            out of range, naming the step.
        ModelError: naming the step and the checkpoint kept, if the loss or a gradient is NaN or infinite, the
            model keeping the weights of that step, or if the loss has been above 10 times its running mean for
            100 steps. If the checkpoint is of another training, listing the differences. If assignments are to be
            learned and nothing is clustered.
        FileError: if the checkpoint is damaged or cannot be read or written.
    """
    config = TrainConfig(
        epochs=epochs,
        max_steps=max_steps,
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        codebook_lr=codebook_lr,
        train_other=train_other,
        bn_eval=bn_eval,
        ema=ema,
        grad_clip=grad_clip,
        autocast=autocast,
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        checkpoint_every=checkpoint_every,
        resume=resume,
    )
    if device is not None:
        model.to(_own(torch.device(device)))
    chosen = objective if objective is not None else Supervised(loss_fn)
    hooks = [on_step] if on_step is not None else []
    if learn_assignments:
        n_steps = total_steps(train_loader, config)
        if n_steps is None:
            raise ConfigError("finetune: learn_assignments needs the number of steps; set max_steps")
        if not is_soft(model):
            soften_(model)
        hooks.append(Reassign(model, n_steps))
    try:
        return Trainer(model, train_loader, chosen, config, progress=progress, on_step=_all(hooks)).run()
    finally:
        if learn_assignments:
            harden_(model)


def _all(hooks: list[Callable[[int, float], Any]]) -> Callable[[int, float], None]:
    def call(step: int, loss: float) -> None:
        for hook in hooks:
            hook(step, loss)

    return call


def _own(device: torch.device) -> torch.device:
    """The GPU of this process, where `torchrun` runs several and none is named."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
