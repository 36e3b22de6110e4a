"""What recovery does and how long it may take, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from mvq.errors import ConfigError

#: Order of the parts; any subset may be chosen.
PARTS = ("importance", "permute", "compensate", "batchnorm", "reconstruct", "distill")

_INTEGERS: dict[str, int] = {
    "images": 1,
    "batch_size": 1,
    "block_layers": 1,
    "cache_bytes": 1,
    "prune_steps": 0,
    "prune_epochs": 0,
    "block_steps": 0,
    "distill_epochs": 0,
    "fisher_images": 1,
    "positions": 1,
    "max_columns": 1,
    "permute_rounds": 0,
    "assign_rounds": 1,
    "seed": 0,
}
_POSITIVE = ("lr", "distill_lr", "damping")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverConfig:
    """Settings of `recover`.

    Attributes:
        images: calibration images used, at most; kept in float16.
        batch_size: images of a step.
        block_layers: fewest convolutions and linear layers of a reconstructed block.
        cache_bytes: bound on the activations kept beside the images: input of the block in both networks and its
            target. Blocks with a larger border are joined with the next one.
        prune_steps: steps on each block of the pruned network, before clustering.
        prune_epochs: passes over the images in which the whole pruned network is distilled.
        block_steps: steps on each block of the clustered network.
        distill_epochs: passes over the images in which the whole clustered network is distilled.
        lr: step of Adam on blocks, as a share of the root mean square of the tensor it trains.
        distill_lr: the same in distillation; through a whole network every tensor's step counts at once.
        augment: distil on random flips and crops of the images; the dense network answers for each of them.
        fisher_images: images that the output-side curvature is measured on.
        positions: output positions of an image that enter a second-moment matrix, at most.
        max_columns: side of a second-moment matrix, at most; a layer with more input columns gets several, blocks on
            the diagonal. Two such float32 matrices a group of channels are in memory at a time.
        damping: added to the diagonal of a second-moment matrix, as a share of its mean diagonal.
        assign_rounds: alternations of assignment with error feedback and codebook fit.
        permute_rounds: rounds of disjoint channel swaps.
        autocast: `bfloat16` runs blocks and distillation in mixed precision: about twice as fast on CPUs with AMX, not
            faster without AVX-512.
        seed: seeds every random choice.

    Raises:
        ConfigError: listing every fault at once.
    """

    images: int = 1000
    batch_size: int = 32
    block_layers: int = 3
    cache_bytes: int = 512 << 20
    prune_steps: int = 200
    prune_epochs: int = 0
    block_steps: int = 100
    distill_epochs: int = 2
    lr: float = 0.005
    distill_lr: float = 5e-4
    augment: bool = True
    fisher_images: int = 128
    positions: int = 64
    max_columns: int = 2304
    damping: float = 0.01
    assign_rounds: int = 2
    permute_rounds: int = 200
    autocast: Literal["bfloat16"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        for f in fields(self):
            value: Any = getattr(self, f.name)
            if f.name in _INTEGERS:
                if isinstance(value, bool) or not isinstance(value, int) or value < _INTEGERS[f.name]:
                    faults.append(f"recover: {f.name}={value!r} is not a whole number of at least {_INTEGERS[f.name]}")
            elif f.name in _POSITIVE:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                    faults.append(f"recover: {f.name}={value!r} is not positive and finite")
        if self.autocast not in (None, "bfloat16"):
            faults.append(f"recover: autocast={self.autocast!r} is not 'bfloat16' or None")
        if faults:
            raise ConfigError("\n".join(faults))


def check_parts(parts: Any) -> tuple[str, ...]:
    """The parts in the order of `PARTS`.

    Raises:
        ConfigError: if one is unknown.
    """
    given = (parts,) if isinstance(parts, str) else tuple(parts)
    unknown = [part for part in given if part not in PARTS]
    if unknown:
        raise ConfigError(f"recover: unknown parts {', '.join(map(repr, unknown))}; known are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in given)
