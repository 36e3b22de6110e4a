"""Blocks of a compressed network trained to give the dense network's activations, and the whole to give its outputs.

Block by block as in BRECQ (Li et al., 2021), with inputs from the compressed blocks before; then distillation (Hinton
et al., 2015) on the same images. No label is used. Batch norm keeps its statistics; its scale and bias are trained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mvq.errors import ModelError
from mvq.nn.parametrizations import LearnedCodebook, VQWeight
from mvq.nn.precision import mixed
from mvq.outputs import Loss, output_loss
from mvq.recover.blocks import Block, modules_of
from mvq.recover.config import RecoverConfig

_SMALLEST_RMS = 1e-2
#: Inputs by which it is judged whether a block is better than before.
_JUDGED = 256


def reconstruct_(
    block: Block, model: nn.Module, inputs: Tensor, targets: Tensor, *, steps: int, config: RecoverConfig
) -> None:
    """Train a block's parameters for `steps` steps on kept activations; what does not help is undone.

    Args:
        block: of the network.
        model: changed in place.
        inputs: of the block, `(n, ...)` float16.
        targets: outputs of the dense block, `(n, ...)` float16.
        steps: of Adam, with warm-up and cosine decay.
        config: batch size, learning rate and seed.

    Raises:
        ModelError: if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    n, variance = len(inputs), targets.float().var().clamp_min(1e-12)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            rows = torch.randint(n, (min(config.batch_size, n),), generator=generator)
            yield as_input(inputs[rows]), targets[rows].float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.float() - target).square().mean() / variance

    def error() -> float:
        parts = zip(inputs[:_JUDGED].split(config.batch_size), targets[:_JUDGED].split(config.batch_size), strict=True)
        with torch.no_grad(), mixed(config.autocast):
            return sum(len(x) * float(loss(block.run(model, as_input(x)), y.float())) for x, y in parts)

    parameters = _parameters(block, model, shared=False)
    before, kept = error(), [p.detach().clone() for p in parameters]
    _train(block, model, parameters, batches(), loss, steps, config.lr, config.autocast)
    if not error() <= before:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def distill_(
    model: nn.Module,
    dense: nn.Module,
    images: Tensor,
    *,
    epochs: int,
    config: RecoverConfig,
    loss: Loss | None = None,
) -> None:
    """Train the whole network to give the dense network's outputs.

    Args:
        model: changed in place, in `eval` mode.
        dense: the teacher, in `eval` mode.
        images: `(n, C, H, W)` float16.
        epochs: passes over the images.
        config: batch size, learning rate, augmentation and seed.
        loss: of the outputs and the dense network's; by default `mvq.outputs.output_loss`.

    Raises:
        ModelError: if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(config.seed)
    block = Block(tuple(name for name, _ in model.named_modules()))
    n_batches = -(-len(images) // config.batch_size)

    def batches() -> Iterator[tuple[Tensor, Any]]:
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(config.batch_size):
                x = as_input(images[rows])
                x = _augmented(x, generator) if config.augment and x.ndim == 4 else x
                # Not around the yield: what receives the batch needs its gradients.
                with torch.no_grad(), mixed(config.autocast):
                    target = dense(x)
                yield x, target

    parameters = _parameters(block, model, shared=True)
    steps = epochs * n_batches
    _train(block, model, parameters, batches(), loss or output_loss, steps, config.distill_lr, config.autocast)


def _train(
    block: Block,
    model: nn.Module,
    parameters: list[nn.Parameter],
    batches: Iterator[tuple[Any, Any]],
    loss_fn: Loss,
    n_steps: int,
    lr: float,
    autocast: str | None,
) -> None:
    if n_steps == 0 or not parameters:
        return
    # Steps in proportion to a tensor's own size make one rate fit codewords, weights, batch norm and biases.
    groups = [{"params": [p], "lr": lr * _size(p)} for p in parameters]
    optim = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: _rate(step, n_steps))
    for step, (x, target) in enumerate(batches):
        with mixed(autocast):
            output = block.run(model, x)
        loss = loss_fn(output, target)
        if not math.isfinite(float(loss.detach())):
            where = block.names[0] or type(model).__name__
            raise ModelError(
                f"reconstruction of the block at {where!r}: the loss is {float(loss.detach())} at step {step}; "
                f"lower lr, or check the calibration images"
            )
        optim.zero_grad(set_to_none=True)
        loss.backward()
        optim.step()
        schedule.step()
    optim.zero_grad(set_to_none=True)


def _rate(step: int, n_steps: int) -> float:
    """Cosine, after a linear warm-up over a tenth: Adam's first steps have full size whatever the gradient."""
    warm = max(n_steps // 10, 1)
    return min((step + 1) / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * step / n_steps))


def _size(parameter: Tensor) -> float:
    if parameter.ndim == 0:
        return 1.0
    return max(float(parameter.detach().float().square().mean().sqrt()), _SMALLEST_RMS)


def _parameters(block: Block, model: nn.Module, *, shared: bool) -> list[nn.Parameter]:
    """Parameters of a block that are to be trained; codebooks that other layers use too only with `shared`."""
    uses = Counter(id(m.codebook) for m in model.modules() if isinstance(m, VQWeight))
    left_out = {
        id(p)
        for m in model.modules()
        if isinstance(m, LearnedCodebook) and uses[id(m)] > 1 and not shared
        for p in m.parameters()
    }
    found = {id(p): p for m in modules_of(block, model).values() for p in m.parameters()}
    return [p for key, p in found.items() if key not in left_out and p.requires_grad]


def as_input(x: Tensor) -> Tensor:
    """Kept activations as a network takes them; convolutions on CPUs are fastest with channels last."""
    x = x.float()
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop of 60 to 100% of the side for the batch, scaled back, and a flip for each image."""
    height, width = x.shape[2:]
    share = 0.6 + 0.4 * float(torch.rand((), generator=generator))
    h, w = max(int(share * height), 1), max(int(share * width), 1)
    top = int(torch.randint(height - h + 1, (), generator=generator))
    left = int(torch.randint(width - w + 1, (), generator=generator))
    x = functional.interpolate(x[:, :, top : top + h, left : left + w], (height, width), mode="bilinear")
    flip = torch.rand(len(x), generator=generator) < 0.5
    return as_input(torch.where(flip[:, None, None, None], x.flip(3), x))
