"""Output statistics brought back to those of the dense network, channel by channel.

Re-estimating running means and variances would leave a network alone whose batch norm is a bare scale and bias (folded
and unfolded again). Here every batch norm's scale and bias are set so that mean and standard deviation of its outputs
are the dense network's, which does for both kinds. A layer with a bias and no batch norm behind it gets its mean back
only, and only in channels that kept their spread: where that is lost for good, the mean would drown what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mvq.recover.blocks import Block, modules_of
from mvq.recover.statistics import watching

_NORMS = nn.modules.batchnorm._BatchNorm
_MOST = 3.0
#: Spread that a channel without batch norm must have kept. On SqueezeNet at 12x, 0.8 was best of 0, 0.5, 0.7, 0.8, 0.9.
_KEPT = 0.8


def match_statistics_(block: Block, model: nn.Module, dense: nn.Module, inputs: Tensor, dense_inputs: Tensor) -> None:
    """Correct the layers of a block in order, each seeing the corrected ones before it.

    Args:
        block: of the network.
        model: compressed, in `eval` mode; changed in place.
        dense: of the same structure.
        inputs: of the block in `model`, as one batch.
        dense_inputs: of the block in `dense`.
    """
    names = [name for name, m in modules_of(block, model).items() if _correctable(m)]
    by_module = {dense.get_submodule(name): name for name in names}
    wanted: dict[str, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, _: Tensor, y: Tensor) -> None:
        wanted[by_module[module]] = _statistics(module, y)

    ours = {model.get_submodule(name): name for name in names}

    def correct(module: nn.Module, _: Tensor, y: Tensor) -> Tensor | None:
        if ours[module] not in wanted:
            return None
        return _correct_(module, y, *wanted.pop(ours[module]))

    with torch.no_grad(), watching(list(by_module), note):
        block.run(dense, dense_inputs)
    with torch.no_grad(), watching(list(ours), correct):
        block.run(model, inputs)


def _correctable(module: nn.Module) -> bool:
    if isinstance(module, _NORMS):
        return module.affine
    return isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None


def _channels_last(module: nn.Module, y: Tensor) -> Tensor:
    return y if isinstance(module, nn.Linear) else y.movedim(1, -1)


def _statistics(module: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    rows = _channels_last(module, y).float().flatten(0, -2)
    return rows.mean(0), rows.std(0, correction=0)


def _correct_(module: Any, y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Change scale and bias; gives the output they lead to."""
    mean_now, std_now = _statistics(module, y)
    factor = torch.ones_like(std)
    if isinstance(module, _NORMS):
        factor = torch.where(std_now > 0, std / std_now.clamp_min(1e-12), factor).clamp(1 / _MOST, _MOST)
        module.weight.mul_(factor)
    else:
        mean = torch.where(std_now >= _KEPT * std, mean, mean_now)
    module.bias.sub_(mean_now).mul_(factor).add_(mean)
    fixed = (_channels_last(module, y) - mean_now) * factor + mean
    return fixed if isinstance(module, nn.Linear) else fixed.movedim(-1, 1)


def match_batchnorm_(model: nn.Module, dense: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """`match_statistics_` on a whole network, with the images of all batches at once."""
    images = torch.cat(list(batches)).float()
    block = Block(tuple(name for name, _ in model.named_modules()))
    match_statistics_(block, model, dense, images, images)
    return model
