"""Parameter groups, learning rates and averages of weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mvq.errors import ConfigError
from mvq.nn import LearnedCodebook, unwrap
from mvq.nn.parametrizations import WeightForm
from mvq.train.config import OPTIMIZERS, TrainConfig

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch norm and instance norm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def codebook_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Latent codewords and scales of all codebooks."""
    return {p for m in unwrap(model).modules() if isinstance(m, LearnedCodebook) for p in m.parameters()}


def make_optimizer(
    model: nn.Module, parameters: list[nn.Parameter], config: TrainConfig
) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimizer over `parameters` and the full learning rate of each of its groups.

    Weight decay acts on weights of at least two axes, the dense ones beneath masks included (pruned entries
    too), and on nothing else: not on codebooks, whatever parameters other forms of a weight have, norms or biases.
    """
    if not isinstance(config.optimizer, str):
        optim = config.optimizer(parameters)
        return optim, [group["lr"] for group in optim.param_groups]
    codebooks = codebook_parameters(model)
    no_decay = codebooks | {
        p for m in unwrap(model).modules() if isinstance(m, (WeightForm, *_NORMS)) for p in m.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay = 0.0 if p in no_decay or p.ndim < 2 else config.weight_decay
        rate = config.lr * (config.codebook_lr if p in codebooks else 1.0)
        groups.setdefault((rate, decay), []).append(p)
    optim = OPTIMIZERS[config.optimizer](
        [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
    )
    return optim, [rate for rate, _ in groups]


def check_schedule(config: TrainConfig, total: int | None) -> None:
    """Check the schedule against the number of steps.

    Raises:
        ConfigError: if `cosine` has no number of steps, or the warm-up leaves none.
    """
    if config.schedule is not None and total is None:
        raise ConfigError("finetune: schedule='cosine' needs the number of steps; set max_steps or schedule=None")
    if total is not None and total and config.warmup_steps >= total:
        raise ConfigError(f"finetune: warmup_steps={config.warmup_steps} leaves none of the {total} steps of training")


def lr_factor(step: int, total: int | None, config: TrainConfig) -> float:
    """Share of the full learning rate at a step: linear warm-up, then constant or half a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule is None or total is None:
        return 1.0
    done = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class WeightAverage:
    """Exponential moving average of all parameters and floating-point buffers of a model.

    Step t (from 0) weighs the past with `min(decay, (t + 1) / (t + 10))`, so that short runs are not held back
    by the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = _float_state(model)
        self.average = {name: t.detach().clone() for name, t in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        share = 1 - min(self.decay, (step + 1) / (step + 10))
        for name, tensor in self._live.items():
            self.average[name].lerp_(tensor, share)

    @torch.no_grad()
    def copy_to_model_(self) -> None:
        """Make the average the weights of the model."""
        for name, tensor in self._live.items():
            tensor.copy_(self.average[name])

    @torch.no_grad()
    def load_(self, average: dict[str, Tensor]) -> None:
        """Go on from a stored average."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])


def _float_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent floating-point buffers, each once; the tensors themselves."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in unwrap(model).state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
