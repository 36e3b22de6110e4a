"""DKM: differentiable k-means clustering (Cho et al., ICLR 2022, arXiv 2108.12659).

In every forward pass the subvectors W attend to the codewords C, `A = softmax(-|w - c|^2 / tau)`, codewords become
the attention-weighted means `C' = A^T W / A^T 1`, and so on from the codewords of the previous step until they move by
at most epsilon; the layer computes with `A C'`, and the gradient reaches the dense weights through all of it.
Evaluation takes the nearest codeword. A `b`-bit clustering of `d` weights costs b/d bits a weight.

What the paper leaves open or we do otherwise:

* Distances are squared, subvectors run along output channels, epsilon = 1e-4: so in the authors' released
  implementation (coremltools, `optimize.torch.palettization`).
* The paper tunes tau for each network; that implementation has 1e-4. As tau has the unit of a squared weight, the
  default here is 0.2 times the layer's mean squared distance after k-means: of 0.01, 0.05, 0.2 and 0.5, tried on
  ResNet-20 at 16x, the best on `val` of `benchmarks/accuracy/cifar10.toml`; on `shifted` 0.5 was ahead of it.
* At most 5 iterations a step. Codewords start from k-means with k-means++ seeding.
* Where d does not divide Cout the last subvectors are padded with zeros, which cost index bits.
* A codeword that nothing attends to keeps its value; the paper divides by zero there.
* Codebooks are stored in float16: with batch norm folded that gives the authors' 3.3 MB of ResNet-50 (cv:6/6,
  fc:6/4), where float32 would give 3.4.
* One setting for all layers; small layers get fewer codewords (`VectorSetting`).
* Attention of large layers is computed by parts and again in the backward pass: exact, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvq.baselines.forms import RivalForm, install_, weights_to_compress
from mvq.baselines.product import nearest
from mvq.baselines.vectors import choose, cluster
from mvq.compressed import code_bits
from mvq.errors import ConfigError
from mvq.grouping import from_subvectors, n_subvectors, to_subvectors
from mvq.nn import as_recipe
from mvq.recipe import Recipe

_CODEBOOK_BITS = 16
_EPSILON = 1e-4
_MAX_ITERS = 5
_RELATIVE_TAU = 0.2
_SMALLEST_TAU = 1e-8
#: Attention below this share in sum leaves a codeword where it is.
_NO_MASS = 1e-7
_LEAST_SCORE = -30.0
#: Entries of the attention matrix that are in memory at a time.
_PART = 1 << 24


def dkm_bits(shape: Sequence[int], n_codewords: int, d: int) -> int:
    """Bits of indices and codebook of one weight."""
    return n_subvectors(shape, d) * code_bits(n_codewords) + _CODEBOOK_BITS * n_codewords * d


def attention(rows: Tensor, codebook: Tensor, tau: float) -> Tensor:
    """`(n, k)` softmax of `-|w - c|^2 / tau`; the norm of w is the same for all codewords and drops out."""
    scores = (2 * rows @ codebook.T - codebook.square().sum(1)) / tau
    # Shares below the resolution of float32 add nothing, and as subnormal numbers they double the time on a CPU.
    return torch.softmax((scores - scores.detach().amax(1, keepdim=True)).clamp_min(_LEAST_SCORE), dim=1)


def _sums(rows: Tensor, codebook: Tensor, tau: float) -> Tensor:
    """`(k, d + 1)`: attention-weighted sums, and the attention itself."""
    return attention(rows, codebook, tau).T @ torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _mix(rows: Tensor, codebook: Tensor, values: Tensor, tau: float) -> Tensor:
    return attention(rows, codebook, tau) @ values


class DKMWeight(RivalForm):
    """A dense weight that the network sees through its differentiable clustering.

    Attributes:
        latent: the dense weight that is trained.
        codebook: float32 `(k, d)` buffer, codewords of the last training step.
        assignments: int32 `(n_sub,)` buffer, set by `harden_`.
        hardened: bool buffer.
    """

    latent: nn.Parameter
    codebook: Tensor
    assignments: Tensor
    hardened: Tensor

    def __init__(self, layer: str, recipe: Recipe, weight: Tensor, codebook: Tensor, *, tau: float) -> None:
        """Stand in for `weight`, with codewords `(k, d)` to start from."""
        super().__init__(layer, recipe)
        self.tau = tau
        self.latent = nn.Parameter(weight.detach().clone())
        n_sub = n_subvectors(weight.shape, codebook.shape[1])
        self.register_buffer("codebook", codebook.detach().float().clone())
        self.register_buffer("assignments", torch.zeros(n_sub, dtype=torch.int32, device=weight.device))
        self.register_buffer("hardened", torch.tensor(False, device=weight.device))

    def forward(self) -> Tensor:
        """Attention-weighted codewords in training, the nearest codeword otherwise."""
        if self.hardened:
            rows = self.codebook[self.assignments]
        else:
            rows = to_subvectors(self.latent.float(), self.codebook.shape[1])
            with torch.autocast(rows.device.type, enabled=False):
                rows = self.cluster(rows) if self.training else self.codebook[nearest(rows.detach(), self.codebook)]
        return from_subvectors(rows, self.latent.shape).contiguous().to(self.latent.dtype)

    def cluster(self, rows: Tensor) -> Tensor:
        """`A C'` for subvectors `(n_sub, d)`; keeps the codewords for the next step."""
        parts = rows.split(max(_PART // len(self.codebook), 1))
        before = values = self.codebook.clone()
        for _ in range(_MAX_ITERS):
            before, sums = values, self._over(_sums, parts, values)
            total = torch.stack(sums).sum(0)
            values = (total[:, :-1] + _NO_MASS * before) / (total[:, -1:] + _NO_MASS)
            if float((values - before).detach().norm()) <= _EPSILON:
                break
        with torch.no_grad():
            self.codebook.copy_(values)
        return torch.cat(self._over(_mix, parts, before, values))

    def _over(self, function: Any, parts: Sequence[Tensor], *args: Tensor) -> list[Tensor]:
        if len(parts) == 1 or not torch.is_grad_enabled():
            return [function(part, *args, self.tau) for part in parts]
        return [checkpoint(function, part, *args, self.tau, use_reentrant=False) for part in parts]  # type: ignore[misc]

    def stored_bits(self) -> int:
        """Bits of indices and float16 codebook."""
        return dkm_bits(self.latent.shape, *self.codebook.shape)

    @torch.no_grad()
    def harden_(self) -> None:
        """Cluster the final weight once more, round the codewords to float16 and assign for good."""
        rows = to_subvectors(self.latent.float(), self.codebook.shape[1])
        self.cluster(rows)
        self.codebook.copy_(self.codebook.half())
        self.assignments.copy_(nearest(rows, self.codebook))
        self.hardened.fill_(True)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """A weight assigned to the layer becomes the dense weight underneath."""
        self.latent.copy_(weight)
        return ()

    def extra_repr(self) -> str:
        """For `print(model)`."""
        k, d = self.codebook.shape
        return f"shape={tuple(self.latent.shape)}, d={d}, n_codewords={k}, tau={self.tau}"


def dkm_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Any = None,
    seed: int = 0,
    tau: float | None = None,
) -> nn.Module:
    """Compress a model by DKM; train it with the ordinary trainer, then `harden_` its forms.

    Args:
        model: dense, changed in place.
        recipe: says which layers are compressed and which are int8.
        target_bits: of indices and codebooks; the largest settings that exceed it by 1% at most compete.
        calibration: not used.
        seed: of k-means.
        tau: temperature of the attention, in squared units of the weights; None for one a layer, by its error.

    Returns:
        The model.

    Raises:
        ConfigError: if the size is out of reach or tau is not positive.
        ModelError: as `install_`.
    """
    if tau is not None and not tau > 0:
        raise ConfigError(f"dkm: tau={tau} is not positive; it divides squared distances")
    recipe = as_recipe(recipe)
    setting = choose(weights_to_compress(model, recipe), target_bits, dkm_bits, method="dkm", seed=seed)

    def form(name: str, weight: Tensor) -> DKMWeight:
        clusters = cluster(weight, setting, seed=seed)
        # An error of zero is that of a layer with as many codewords as subvectors, where any temperature will do.
        usual = max(_RELATIVE_TAU * clusters.sse / len(clusters.assignments), _SMALLEST_TAU)
        return DKMWeight(name, recipe, weight, clusters.codebook, tau=usual if tau is None else tau)

    return install_(model, recipe, form)
