"""Int8 and N:M pruning without vector quantization: what sparsity alone gives.

Kept weights are symmetric int8 with one float32 scale an output channel, `max|w| / 127` at the start and fixed, as
`Int8Weight`. Masks are N:M by magnitude along output channels, as everywhere here, stored by rank. A weight costs
`8 N/M + ceil(log2 C(M, N)) / M` bits. SR-STE (Zhou et al., ICLR 2021, eq. 8) lets masks follow the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mvq.baselines.forms import RivalForm, install_, nearest_below, weights_to_compress
from mvq.errors import ConfigError, ModelError
from mvq.grouping import n_positions, n_subvectors
from mvq.nn import Int8Weight, NMMask, as_recipe, eligible_layers
from mvq.nn.functional import FakeQuantChannels, SparseWeight, magnitude_mask
from mvq.nn.layers import form_of
from mvq.patterns import Pattern
from mvq.recipe import Recipe

#: Large groups first: of equally large settings they keep more of the weight.
PATTERNS = tuple(Pattern(n, m) for m in range(32, 0, -4) for n in range(1, m))


def int8_nm_bits(shape: Sequence[int], pattern: Pattern) -> int:
    """Bits of kept codes, mask ids and scales of one weight; a last, short group keeps up to N weights."""
    whole, rest = divmod(shape[0], pattern.group)
    kept = (whole * pattern.keep + min(rest, pattern.keep)) * n_positions(shape)
    return 8 * kept + pattern.mask_bits * n_subvectors(shape, pattern.group) + 32 * shape[0]


class Int8NMWeight(RivalForm):
    """Int8 codes of the weights that an N:M mask keeps; the dense weight stays underneath.

    Attributes:
        pattern: N:M.
        mask: bool buffer of the weight's shape.
        scales: float32 `(Cout,)` buffer.
        decay: None for a fixed mask, else that of SR-STE.
    """

    mask: Tensor
    scales: Tensor

    def __init__(
        self, layer: str, recipe: Recipe, weight: Tensor, pattern: Pattern, mask: Tensor, *, decay: float | None
    ) -> None:
        """Keep `weight` where `mask`, which has the pattern, is True."""
        super().__init__(layer, recipe)
        self.pattern = pattern
        self.decay = decay
        self.register_buffer("mask", mask.clone())
        self.register_buffer("scales", Int8Weight.scales_of(weight * mask))

    def forward(self, weight: Tensor) -> Tensor:
        """The pruned and quantized weight; with SR-STE training takes the mask anew."""
        mask = self.mask
        if self.decay is not None and self.training:
            # A tensor of its own: autograd keeps it, and the buffer may change before it is used
            mask = magnitude_mask(weight, self.pattern)
            self.mask.copy_(mask)
        pruned: Any = weight * mask if self.decay is None else SparseWeight.apply(weight, mask, self.decay)
        quantized: Any = FakeQuantChannels.apply(pruned.float(), self.scales)
        return quantized.to(weight.dtype)

    def stored_bits(self) -> int:
        """Bits of kept codes, mask ids and scales."""
        return int8_nm_bits(self.mask.shape, self.pattern)

    def harden_(self) -> None:
        """Fix the mask."""
        self.decay = None

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight assigned to the layer becomes the dense weight underneath; scales and mask stay."""
        return weight

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"pattern={self.pattern}" + ("" if self.decay is None else f", decay={self.decay}")


def int8_nm_pattern(model: nn.Module, recipe: Recipe | str | Mapping[str, Any], target_bits: int) -> Pattern:
    """The pattern that `int8_nm_` will use, for sparse training before it.

    Raises:
        ConfigError: if every pattern exceeds the target by more than 1%.
        ModelError: as `plan`.
    """
    shapes = [tuple(weight.shape) for weight in weights_to_compress(model, recipe).values()]
    sizes = [(pattern, sum(int8_nm_bits(shape, pattern) for shape in shapes)) for pattern in PATTERNS]
    return nearest_below(sizes, target_bits, method="int8_nm")[0]


def int8_nm_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    calibration: Any = None,
    seed: int = 0,
    decay: float | None = None,
) -> nn.Module:
    """Prune a model N:M and make what is left int8; train it with the ordinary trainer.

    Args:
        model: dense, or pruned with `int8_nm_pattern`, whose masks then stay; changed in place.
        recipe: says which layers are compressed and which are int8; its own pattern does not count.
        target_bits: of codes, mask ids and scales; exceeded by 1% at most.
        calibration: not used.
        seed: not used; nothing is random.
        decay: None for fixed masks; a number of at least 0 for SR-STE with this decay (5e-4 for a trained network).

    Returns:
        The model.

    Raises:
        ConfigError: if the size is out of reach or decay is negative.
        ModelError: as `install_`; if the model was pruned with another pattern.
    """
    if decay is not None and not decay >= 0:
        raise ConfigError(f"int8_nm: decay={decay} is not at least 0; None is for fixed masks")
    recipe = as_recipe(recipe)
    pattern = int8_nm_pattern(model, recipe, target_bits)
    _check_patterns(model, pattern)

    def form(name: str, weight: Tensor) -> Int8NMWeight:
        # Of a pruned weight this is its mask: what is pruned is zero
        mask = magnitude_mask(weight, pattern)
        return Int8NMWeight(name, recipe, weight, pattern, mask, decay=decay)

    return install_(model, recipe, form)


def _check_patterns(model: nn.Module, pattern: Pattern) -> None:
    for name, module, _ in eligible_layers(model):
        form = form_of(module)
        if isinstance(form, NMMask) and form.pattern != pattern:
            raise ModelError(
                f"int8_nm: layer {name!r} was pruned {form.pattern}, the size asks for {pattern}; prune with "
                f"int8_nm_pattern, or bake_ the model first"
            )
