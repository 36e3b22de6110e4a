"""Weight parametrizations: an N:M mask, vector-quantized, int8.

Values that decide the stored codes (codewords, scales) stay float32 whatever `.half()` or `.to(dtype)` is
applied; the weight that comes out has the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvq.compressed import Codebook, code_bits
from mvq.errors import ModelError
from mvq.grouping import n_subvectors, valid_lanes
from mvq.nn.functional import (
    DecodeWeight,
    FakeQuantChannels,
    FakeQuantCodebook,
    SparseWeight,
    channel_codes,
    magnitude_mask,
)
from mvq.patterns import Pattern
from mvq.recipe import Codewords, LayerRecipe, Recipe


def _keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` without its change of floating dtype; devices and storage still change."""

    def apply(tensor: Tensor) -> Tensor:
        if tensor.is_meta or not tensor.is_floating_point():
            return fn(tensor)
        probe = fn(tensor.new_empty(0))
        return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(device=probe.device)

    return apply


def _lanes_eager(mask_ids: Tensor, pattern: Pattern, d: int, codewords: Codewords) -> Tensor:
    """The lanes argument of `DecodeWeight`; padding that an id keeps stays in, the decoder cuts it off."""
    mask = pattern.unrank(mask_ids.cpu().numpy())
    if codewords == "packed":
        mask = np.nonzero(mask)[1].reshape(len(mask), pattern.kept_per(d))
    # The result is kept for later uses, so it must not be an inference tensor: training could not save it.
    with torch.inference_mode(False):
        return torch.from_numpy(mask).to(mask_ids.device)


# NumPy code that runs once: a graph break costs nothing, tracing it would.
_lanes: Callable[..., Tensor] = torch.compiler.disable(_lanes_eager)  # pyright: ignore


class WeightForm(nn.Module):
    """Common part of the three.

    Attributes:
        layer: name of the layer, for messages.
        recipe: what the model was compressed with; read by `extract`.
    """

    layer: str
    recipe: Recipe

    def __init__(self, layer: str, recipe: Recipe) -> None:
        super().__init__()
        self.layer = layer
        self.recipe = recipe
        self._settled = False

    def settle(self) -> None:
        """From now on assigning to `module.weight` is an error where the form cannot take a dense weight."""
        self._settled = True

    def keep_nothing(self) -> tuple[()]:
        """What `right_inverse` gives for a weight that is computed from a codebook alone.

        Raises:
            ModelError: on assignment to the layer's weight.
        """
        if self._settled:
            raise ModelError(
                f"layer {self.layer!r}: its weight is computed from a codebook and cannot be assigned; "
                f"bake_ the model first, or change the codewords"
            )
        return ()


class NMMask(WeightForm):
    """An N:M mask over a dense weight that stays underneath as `parametrizations.weight.original`.

    Attributes:
        mask: bool buffer of the weight's shape, True = kept.
        decay: None for a fixed mask. A number >= 0 for SR-STE: the mask is taken anew from the dense weight at
            each forward in training mode, and pruned weights are trained on with this decay.
    """

    mask: Tensor

    def __init__(
        self, layer: str, recipe: Recipe, pattern: Pattern, mask: Tensor, *, decay: float | None = None
    ) -> None:
        """Keep the weights where `mask`, bool and of the weight's shape, is True."""
        super().__init__(layer, recipe)
        self.pattern = pattern
        self.decay = decay
        self._n_flips: Tensor | None = None
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """`weight * mask`; in training mode, where the mask is not fixed, with the mask of this weight."""
        if self.decay is None:
            return weight * self.mask
        # The mask of this step is a tensor of its own: autograd keeps it, and the buffer may change before it is used
        mask = self.update_mask_(weight) if self.training else self.mask
        return SparseWeight.apply(weight, mask, self.decay)  # type: ignore[return-value]

    @torch.no_grad()
    def update_mask_(self, weight: Tensor) -> Tensor:
        """Set the mask to the largest magnitudes of a dense weight, unless it is fixed; the mask as a new tensor."""
        if self.decay is None:
            return self.mask.clone()
        mask = magnitude_mask(weight, self.pattern)
        self._n_flips = (mask != self.mask).sum()
        self.mask.copy_(mask)
        return mask

    def freeze_(self) -> None:
        """Fix the mask as it is now."""
        self.decay = None
        self._n_flips = None

    @property
    def n_flips(self) -> int:
        """Entries of the mask that its last update changed; 0 for a fixed one."""
        return 0 if self._n_flips is None else int(self._n_flips)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight assigned to the layer becomes the dense weight underneath."""
        return weight

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"pattern={self.pattern}" + ("" if self.decay is None else f", decay={self.decay}")


class LearnedCodebook(nn.Module):
    """An int8 codebook whose latent float codewords and scale are trained (LSQ).

    The scale is `scale_base * exp(scale_log)`, with `scale_log` the trained parameter, 0 at first: always
    positive, exact as long as it is not trained, and a step of Adam at the learning rate r changes it by the
    factor `1 +- r`, whatever its size.

    Attributes:
        values: float32 `(k, width)` latent codewords.
        scale_log: float32 scalar.
        scale_base: float32 scalar buffer.
        counts: int32 `(k, width)` buffer, how many subvectors of all its layers keep each value.
    """

    values: nn.Parameter
    scale_log: nn.Parameter
    scale_base: Tensor
    counts: Tensor

    def __init__(self, key: str, values: Tensor, scale: float) -> None:
        super().__init__()
        self.key = key
        self.values = nn.Parameter(values.detach().float().clone())
        self.scale_log = nn.Parameter(torch.zeros((), device=values.device))
        self.register_buffer("scale_base", torch.tensor(scale, dtype=torch.float32, device=values.device))
        self.register_buffer("counts", torch.zeros(values.shape, dtype=torch.int32, device=values.device))

    @classmethod
    def from_codebook(cls, key: str, codebook: Codebook, device: torch.device) -> LearnedCodebook:
        """Latent codewords at the values of a stored codebook.

        Raises:
            ModelError: if the scale is below the smallest normal float32, where codes would not survive
                arithmetic.
        """
        if codebook.scale < np.finfo(np.float32).tiny:
            raise ModelError(
                f"codebook {key!r}: scale {codebook.scale} is below the smallest normal float32 and cannot "
                "be trained; "
                f"decode it with dense=True"
            )
        return cls(key, torch.from_numpy(codebook.values).to(device), codebook.scale)

    def scale(self) -> Tensor:
        """The scalar scale."""
        return self.scale_base * self.scale_log.exp()

    def forward(self) -> Tensor:
        """The quantized codewords, float32 `(k, width)`."""
        return FakeQuantCodebook.apply(self.values, self.scale_base, self.scale_log)  # type: ignore[return-value]

    @torch.no_grad()
    def codebook(self) -> Codebook:
        """Read off as plain data."""
        scale = self.scale()
        codes = (self.values / scale).round_().clamp_(-128, 127)
        return Codebook(codes=codes.to(torch.int8).cpu().numpy(), scale=float(scale))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(_keep_dtype(fn), recurse)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.key!r}, {self.values.shape[0]} x {self.values.shape[1]}"


class LatentRows(nn.Module):
    """Trained float values of a layer's subvectors, which say where its assignments ought to go.

    They are kept in a unit that goes with the codebook, so that a step of Adam at one learning rate means the same for
    them in every network.

    Attributes:
        values: float32 `(n_sub, width)`, in that unit.
        unit: float32 scalar buffer.
    """

    values: nn.Parameter
    unit: Tensor

    def __init__(self, rows: Tensor, unit: float) -> None:
        super().__init__()
        self.values = nn.Parameter(rows.detach().float() / unit)
        self.register_buffer("unit", torch.tensor(unit, dtype=torch.float32, device=rows.device))

    def forward(self) -> Tensor:
        """The values in the units of the weight."""
        return self.values * self.unit

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(_keep_dtype(fn), recurse)


class VQWeight(WeightForm):
    """A weight computed from codebook, assignments and mask ids; it holds no dense tensor.

    Attributes:
        codebook: shared among layers for scope `network`.
        assignments: int32 `(n_sub,)`.
        mask_ids: int32 `(n_sub, d / M)`, `(n_sub, 0)` for a dense pattern.
        masked_sse: squared error over kept weights, as clustered; not part of the `state_dict`.
        total_sse: squared error over all weights, as clustered; not part of the `state_dict`.
        latent: trained values that assignments follow, see `mvq.nn.assignments`; None where assignments are fixed.
    """

    assignments: Tensor
    mask_ids: Tensor
    _like: Tensor

    def __init__(
        self,
        layer: str,
        recipe: Recipe,
        codebook: LearnedCodebook,
        *,
        spec: LayerRecipe,
        weight: Tensor,
        assignments: NDArray[np.integer],
        mask_ids: NDArray[np.integer],
        sse: tuple[float, float],
    ) -> None:
        """Stand in for `weight`: its shape, dtype and device; `sse` is `(masked_sse, total_sse)`."""
        super().__init__(layer, recipe)
        self.codebook = codebook
        self.pattern: Pattern = spec.pattern
        self.d = spec.d
        self.codewords: Codewords = spec.codewords
        self.shape = tuple(weight.shape)
        self.masked_sse, self.total_sse = sse
        device = weight.device
        self.register_buffer("assignments", torch.from_numpy(assignments.astype(np.int32)).to(device))
        self.register_buffer("mask_ids", torch.from_numpy(mask_ids.astype(np.int32)).to(device))
        # Empty: it follows .to() and so remembers the dtype of the model.
        self.register_buffer("_like", torch.empty(0, dtype=weight.dtype, device=device), persistent=False)
        self._lanes: Tensor | None = None
        self.latent: LatentRows | None = None

    @property
    def n_codewords(self) -> int:
        """Codewords of the codebook."""
        return self.codebook.values.shape[0]

    def forward(self) -> Tensor:
        """The dense weight in the dtype of the model."""
        if self._lanes is None and not self.pattern.is_dense:
            self._lanes = self._derive_lanes()
        latent = None if self.latent is None else self.latent()
        weight = DecodeWeight.apply(
            self.codebook(), self.assignments, self._lanes, self.codebook.counts, self.shape, self.d, latent
        )
        return weight.to(self._like.dtype)  # type: ignore[union-attr]

    def stored_bits(self) -> int:
        """Bits of assignments and mask ids in a file; the codebook, which layers may share, is not counted."""
        return self.assignments.numel() * code_bits(self.n_codewords) + self.mask_ids.numel() * self.pattern.mask_bits

    def _derive_lanes(self) -> Tensor | None:
        if self.pattern.is_dense:
            return None
        return _lanes(self.mask_ids, self.pattern, self.d, self.codewords)

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Bool `(n_sub, width)`: the values of each subvector's codeword that stand for a weight."""
        valid = torch.from_numpy(np.array(valid_lanes(self.shape, self.d))).to(self.assignments.device)
        lanes = self._derive_lanes()
        if lanes is not None:
            valid = valid & lanes if lanes.dtype == torch.bool else valid.gather(1, lanes)
        return valid

    @torch.no_grad()
    def count_members(self, sign: int = 1) -> None:
        """Add this layer's members to the counts of its codebook, or take them away with -1."""
        self.codebook.counts.index_add_(0, self.assignments, sign * self.kept().to(torch.int32))

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Nothing dense is kept, see `keep_nothing`."""
        return self.keep_nothing()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._lanes = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for what, limit in (("assignments", self.n_codewords), ("mask_ids", self.pattern.n_masks)):
            ids = state_dict.get(prefix + what)
            if isinstance(ids, Tensor) and ids.numel() and not ids.is_meta:
                low, high = int(ids.min()), int(ids.max())
                if low < 0 or high >= limit:
                    raise ModelError(
                        f"layer {self.layer!r}: {what} of the state_dict span {low}..{high}, must lie in "
                        f"0..{limit - 1}; "
                        f"the state_dict is damaged or of a model with another codebook or pattern"
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._lanes = None

    def extra_repr(self) -> str:
        """For `print(model)`."""
        n_sub = n_subvectors(self.shape, self.d)
        kind = f"pattern={self.pattern}, d={self.d}, codewords={self.codewords!r}"
        return f"shape={self.shape}, {kind}, n_sub={n_sub}"


class Int8Weight(WeightForm):
    """Per-output-channel symmetric int8 with fixed scales over a float weight that is trained on.

    Attributes:
        scales: float32 `(Cout,)` buffer, `max|w| / 127`, 1 for an all-zero channel.
    """

    scales: Tensor

    def __init__(self, layer: str, recipe: Recipe, scales: Tensor) -> None:
        super().__init__(layer, recipe)
        self.register_buffer("scales", scales)

    @staticmethod
    def scales_of(weight: Tensor) -> Tensor:
        """Float32 scales of a weight `(Cout, ...)`."""
        # Below the smallest normal number a scale has too few bits to carry 127 codes.
        top = weight.detach().float().abs().flatten(1).amax(1) / 127
        return torch.where(top < torch.finfo(torch.float32).tiny, torch.ones_like(top), top)

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantized weight in its own dtype."""
        return FakeQuantChannels.apply(weight.float(), self.scales).to(weight.dtype)  # type: ignore[union-attr]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight assigned to the layer becomes the float weight underneath; scales stay."""
        return weight

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Int8 codes of the float weight underneath."""
        scales = self.scales.reshape(-1, *[1] * (weight.ndim - 1))
        return channel_codes(weight.detach().float(), scales).to(torch.int8)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(_keep_dtype(fn), recurse)
