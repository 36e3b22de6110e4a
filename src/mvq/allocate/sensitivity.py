"""How much the output depends on each weight, from unlabelled inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mvq.errors import DataError, ModelError
from mvq.nn.layers import eligible_layers, form_of
from mvq.nn.parametrizations import NMMask
from mvq.outputs import Score, drawn_cross_entropy


def fisher(
    model: nn.Module, loader: Iterable[Any], *, n_batches: int = 8, score: Score | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information, `E[(d log p(y|x) / dw)^2]` with y drawn from the model's own output.

    To second order the divergence between the outputs before and after a small change is half of
    `sum h (w - w_hat)^2`. Labels are not looked at. The gradient of a whole batch is squared: those of single images
    are independent with mean zero, as y is drawn, so that the expectation is the sum of their squares.

    Args:
        model: dense or pruned; runs in eval mode and is as before afterwards.
        loader: yields inputs, or pairs that begin with them.
        n_batches: batches used at most.
        score: `(outputs, generator)` to the summed negative log-likelihood of drawn targets; by default for logits
            `(n, n_classes, ...)`, or a dictionary that has them as `out`.
        seed: of the draws.

    Returns:
        Float32, shaped like the weight, per input, for every convolution and linear layer, by layer name.

    Raises:
        DataError: if the loader yields nothing.
        ModelError: if the outputs are not logits and no score is given, or a layer is compressed.
    """
    weights = {name: _parameter(name, module) for name, module, _ in eligible_layers(model)}
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    flags = {w: w.requires_grad for w in weights.values()}
    modes = {module: module.training for module in model.modules()}
    n = 0
    try:
        model.eval()
        for w in flags:
            w.requires_grad_(True)
        for i, batch in enumerate(loader):
            if i == n_batches:
                break
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            inputs = inputs.to(next(iter(weights.values())).device)
            loss = (score or drawn_cross_entropy)(model(inputs), generator)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient.float() ** 2
            n += len(inputs)
    finally:
        for w, flag in flags.items():
            w.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
    if n == 0:
        raise DataError("fisher: the loader yields no input; give it data, or a list, not a used-up iterator")
    return {name: total / n for name, total in sums.items()}


def layer_fisher(model: nn.Module, loader: Iterable[Any], **options: Any) -> dict[str, Tensor]:
    """`fisher` averaged over a layer's weights that are not zero: one number a layer, steadier than one a weight.

    Args:
        model: as for `fisher`.
        loader: as for `fisher`.
        options: of `fisher`.

    Returns:
        Constant float32 tensors, shaped like the weights.

    Raises:
        DataError: as `fisher`.
        ModelError: as `fisher`.
    """
    found = fisher(model, loader, **options)
    for name, module, _ in eligible_layers(model):
        kept = module.weight.detach() != 0  # type: ignore[union-attr,operator]
        found[name].fill_(float(found[name][kept].mean()) if bool(kept.any()) else 1.0)
    return found


def _parameter(name: str, module: nn.Module) -> Tensor:
    form: Any = form_of(module)
    if form is None and "weight" in module._parameters:
        return module.weight  # type: ignore[return-value]
    if isinstance(form, NMMask):
        return module.parametrizations["weight"].original  # type: ignore[index,union-attr,return-value]
    raise ModelError(f"fisher: layer {name!r} is compressed or parametrized; give the dense or pruned model")
