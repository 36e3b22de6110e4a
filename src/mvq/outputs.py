"""What a network's outputs say, and how far those of two networks are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mvq.errors import ModelError

#: `(outputs, generator)` to the summed negative log-likelihood of targets drawn from the outputs.
Score = Callable[[Any, torch.Generator], Tensor]
#: `(outputs, outputs of the network to follow)` to a scalar, nought where they are equal or a constant more.
Loss = Callable[[Any, Any], Tensor]
#: Of classes `(n, n_classes)` in `output_loss`.
_TEMPERATURE = 2.0


def score_and_loss(task: str) -> tuple[Score | None, Loss | None]:
    """What the outputs of a task mean, for `mvq.recover`; None for what `output_score` and `output_loss` say.

    Outputs `(n, n_classes, H, W)` have classes at every pixel, which their shape does not tell.
    """
    return (drawn_cross_entropy, divergence) if task == "segmentation" else (None, None)


def tensors_in(part: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples and dictionaries."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from tensors_in(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from tensors_in(value)


def logits(outputs: Any) -> Tensor:
    """Logits `(n, n_classes, ...)`: the outputs, or what is `out` of them as in torchvision's segmentation models.

    Raises:
        ModelError: if the outputs are neither.
    """
    found = outputs.get("out") if isinstance(outputs, Mapping) else outputs
    if not isinstance(found, Tensor) or found.ndim < 2:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(outputs).__name__}"
        raise ModelError(f"the model gives {what}, not logits (n, n_classes, ...); give a score or a loss of its own")
    return found


def divergence(outputs: Any, wanted: Any, temperature: float = 1.0) -> Tensor:
    """`KL(wanted || outputs)` of softened classes, the mean over samples and places, as cross entropy takes it.

    Args:
        outputs: logits, see `logits`.
        wanted: logits of the same shape.
        temperature: divides both.

    Raises:
        ModelError: as `logits`.
    """
    ours, theirs = ((logits(part).float() / temperature).log_softmax(1) for part in (outputs, wanted))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


def drawn_cross_entropy(outputs: Any, generator: torch.Generator) -> Tensor:
    """Summed cross entropy of classes drawn from the logits themselves.

    Raises:
        ModelError: as `logits`.
    """
    flat = logits(outputs).movedim(1, -1).flatten(0, -2).float()
    # Drawn on the CPU, so that the device makes no difference
    drawn = torch.multinomial(flat.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
    return F.cross_entropy(flat, drawn.to(flat.device), reduction="sum")


def output_loss(outputs: Any, wanted: Any) -> Tensor:
    """Distance of two networks' outputs: divergence of scores `(n, classes)`, else relative squared error."""
    pairs = list(zip(_real(outputs), _real(wanted), strict=True))
    if len(pairs) == 1 and pairs[0][0].ndim == 2:
        return divergence(*pairs[0], _TEMPERATURE) * _TEMPERATURE**2
    errors = [(a.float() - b.float()).square().mean() / b.float().var().clamp_min(1e-12) for a, b in pairs]
    return torch.stack(errors).mean()


def output_score(outputs: Any, generator: torch.Generator) -> Tensor:
    """`drawn_cross_entropy` of scores `(n, classes)`, else a random projection, which is unit noise on every value."""
    tensors = _real(outputs)
    if len(tensors) == 1 and tensors[0].ndim == 2:
        return drawn_cross_entropy(tensors[0], generator)
    terms = [(t.float() * torch.randn(t.shape, generator=generator).to(t.device)).sum() for t in tensors]
    return torch.stack(terms).sum()


def _real(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
