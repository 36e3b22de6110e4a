"""SSVQ: sign-splitting vector quantization (Li et al., ICCV 2025, arXiv 2503.08668).

One sign bit a weight is split off and k-means runs over |w|. Training moves the int8 codebook and, through a
straight-through sign, one logit a weight that starts at `alpha * w`; so every weight can change its sign on its own.
Signs that oscillate are frozen: at the end of each window those that flipped more often than a threshold get the sign
they had most of the time in the window. Assignments never change. Storage: `1 + log2(k) / d` bits a weight and the
codebook; k = 16, d = 8 is the paper's "21x" for DeiT-tiny.

The paper's text could be read in part only. What it leaves open to us, or we do otherwise:

* alpha = 0.4, the best of 0.15, 0.4 and 1 on ResNet-32 at 22x (`docs/decisions.md`). Subvectors run along
  output channels, as in the same authors' MVQ.
* The window is 500 steps in the paper's runs of some 50,000; here 1/20 of the run, at most 500.
* The threshold falls as a cosine from 0.04 to 0.01 flips a step, the schedule of Nagel et al. ("Overcoming
  oscillations in quantization-aware training", ICML 2022), whose freezing SSVQ builds on; one flip in a window
  is none.
* The codebook is int8 with a learned scale, and a codeword's gradient is the mean over its members, as everywhere
  here; under Adam that is the same as their sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvq.baselines.forms import RivalForm, install_, weights_to_compress
from mvq.baselines.vectors import Clusters, choose, cluster
from mvq.codebook import fit_int8
from mvq.compressed import code_bits
from mvq.grouping import n_subvectors, valid_lanes
from mvq.nn import LearnedCodebook, as_recipe
from mvq.nn.functional import DecodeWeight
from mvq.recipe import Recipe

#: Logits start at this many times the weights; the less it is, the sooner signs flip.
ALPHA = 0.4
_FIRST_THRESHOLD, _LAST_THRESHOLD = 0.04, 0.01
_LONGEST_WINDOW = 500
_N_WINDOWS = 20


def ssvq_bits(shape: Sequence[int], n_codewords: int, d: int) -> int:
    """Bits of signs, indices, int8 codebook and its scale of one weight."""
    return math.prod(shape) + n_subvectors(shape, d) * code_bits(n_codewords) + 8 * n_codewords * d + 32


def freezing_threshold(progress: float) -> float:
    """Flips a step above which a sign freezes, after this share of the training."""
    return _LAST_THRESHOLD + (_FIRST_THRESHOLD - _LAST_THRESHOLD) * (1 + math.cos(math.pi * progress)) / 2


class SignThrough(torch.autograd.Function):
    """`sign(logits)`, with sign(0) = 1; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        """1 or -1 for each logit."""
        return torch.where(logits >= 0, 1.0, -1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Identity."""
        return grads[0]


class SSVQWeight(RivalForm):
    """A weight as codewords of its magnitudes times learned signs.

    Attributes:
        codebook: of the magnitudes.
        logits: weight-shaped parameter whose signs count.
        assignments: int32 `(n_sub,)` buffer.
        frozen: int8 buffer of the weight's shape: 0 while learned, else the sign for good.
        n_positive, n_flips, last: int16, int16 and bool buffers, what the signs did in this window.
    """

    logits: nn.Parameter
    assignments: Tensor
    frozen: Tensor
    n_positive: Tensor
    n_flips: Tensor
    last: Tensor
    _like: Tensor

    def __init__(
        self,
        layer: str,
        recipe: Recipe,
        weight: Tensor,
        clusters: Clusters,
        *,
        alpha: float,
        freeze_every: int | None,
    ) -> None:
        """Stand in for `weight`, whose magnitudes were clustered."""
        super().__init__(layer, recipe)
        self.freeze_every = freeze_every
        shape, (k, d) = tuple(weight.shape), clusters.codebook.shape
        valid = torch.from_numpy(np.array(valid_lanes(shape, d))).to(weight.device)
        counts = torch.zeros(k, d, dtype=torch.int32, device=weight.device)
        counts.index_add_(0, clusters.assignments, valid.int())
        latent = clusters.codebook.cpu().numpy()
        scale = fit_int8(latent, counts.cpu().numpy()).scale
        self.codebook = LearnedCodebook(layer, clusters.codebook, scale)
        self.codebook.counts.copy_(counts)
        self.logits = nn.Parameter(alpha * weight.detach().float())
        self.register_buffer("assignments", clusters.assignments)
        self.register_buffer("frozen", torch.zeros_like(weight, dtype=torch.int8))
        self.register_buffer("n_positive", torch.zeros_like(weight, dtype=torch.int16))
        self.register_buffer("n_flips", torch.zeros_like(weight, dtype=torch.int16))
        self.register_buffer("last", weight >= 0)
        # Empty: it follows .to() and so remembers the dtype of the model.
        self.register_buffer("_like", torch.empty(0, dtype=weight.dtype, device=weight.device), persistent=False)

    def forward(self) -> Tensor:
        """Magnitudes times signs."""
        shape, d = tuple(self.logits.shape), self.codebook.values.shape[1]
        size = DecodeWeight.apply(self.codebook(), self.assignments, None, self.codebook.counts, shape, d)
        learned: Any = SignThrough.apply(self.logits)
        signs = torch.where(self.frozen == 0, learned, self.frozen.to(learned.dtype))
        return (size * signs).to(self._like.dtype)  # type: ignore[operator]

    def stored_bits(self) -> int:
        """Bits of signs, indices and codebook."""
        return ssvq_bits(self.logits.shape, *self.codebook.values.shape)

    @torch.no_grad()
    def after_step(self, step: int, n_steps: int) -> None:
        """Watch the signs; at the end of a window freeze those that oscillate."""
        window = self.freeze_every or min(_LONGEST_WINDOW, max(n_steps // _N_WINDOWS, 1))
        positive = self.logits >= 0
        self.n_positive += positive
        self.n_flips += positive != self.last
        self.last.copy_(positive)
        if (step + 1) % window == 0:
            limit = max(freezing_threshold(min((step + 1) / n_steps, 1)) * window, 1)
            oscillates = self.n_flips > limit
            majority = torch.where(2 * self.n_positive >= window, 1, -1).to(torch.int8)
            self.frozen.copy_(torch.where(oscillates & (self.frozen == 0), majority, self.frozen))
            self.n_positive.zero_()
            self.n_flips.zero_()

    @torch.no_grad()
    def harden_(self) -> None:
        """Freeze all signs as they are."""
        signs = torch.where(self.logits >= 0, 1, -1).to(torch.int8)
        self.frozen.copy_(torch.where(self.frozen == 0, signs, self.frozen))

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Nothing dense is kept, see `keep_nothing`."""
        return self.keep_nothing()

    def extra_repr(self) -> str:
        """For `print(model)`."""
        k, d = self.codebook.values.shape
        return f"shape={tuple(self.logits.shape)}, d={d}, n_codewords={k}"


def ssvq_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Any = None,
    seed: int = 0,
    alpha: float = ALPHA,
    freeze_every: int | None = None,
) -> nn.Module:
    """Compress a model by SSVQ; train it with the ordinary trainer and `after_step`, then `harden_` its forms.

    Args:
        model: dense, changed in place.
        recipe: says which layers are compressed and which are int8.
        target_bits: of signs, indices and codebooks; exceeded by 1% at most.
        calibration: not used.
        seed: of k-means.
        alpha: sign logits start at `alpha * w`.
        freeze_every: steps of a window; None for 1/20 of the training, at most 500.

    Returns:
        The model.

    Raises:
        ConfigError: if the size is out of reach, which it is below one bit a weight.
        ModelError: as `install_`.
    """
    recipe = as_recipe(recipe)
    sizes = {name: weight.abs() for name, weight in weights_to_compress(model, recipe).items()}
    setting = choose(sizes, target_bits, ssvq_bits, method="ssvq", seed=seed)

    def form(name: str, weight: Tensor) -> SSVQWeight:
        clusters = cluster(weight.abs(), setting, seed=seed)
        return SSVQWeight(name, recipe, weight, clusters, alpha=alpha, freeze_every=freeze_every)

    return install_(model, recipe, form)
