"""Product quantization along the input direction, as BGD and PQF store it, and settings of a wanted size.

BGD: Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020. PQF: Martinez
et al., "Permute, Quantize, and Fine-tune", CVPR 2021. Both view a weight as `(Cout, Cin/groups * kh * kw)`, cut every
row into blocks of d consecutive values, and give all blocks of a layer one float16 codebook. Int8 and masks are not
part of either method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mvq.baselines.forms import SLACK, RivalForm
from mvq.compressed import code_bits
from mvq.errors import ConfigError, ModelError
from mvq.grouping import n_positions
from mvq.nn.layers import Planned, attach, check_ready, dense_weight, form_of, plan
from mvq.nn.parametrizations import Int8Weight
from mvq.recipe import Recipe

_CODEBOOK_BITS = 16
#: Blocks a codeword at least: `k <= Cout * m / 4` with m blocks a row (BGD, section 4.1; PQF likewise).
_BLOCKS_PER_CODEWORD = 4
#: Codewords of linear layers against those of convolutions: 1024 and 256 in both papers' ResNet-50.
_LINEAR_CODEWORDS = 4
_NEAR = 0.9
#: Largest common number of codewords that is tried; the papers' largest codebook has 2048.
_MAX_CODEWORDS = 2048
_TRIAL_BLOCKS, _TRIAL_ITERS = 8192, 4
_SPLIT_ROUNDS = 10
_SPLIT_NOISE = 1e-3
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Regime:
    """Block sizes of a network.

    Attributes:
        kernels: kernels (`kh * kw` values), or the share of one, in a block of a convolution larger than 1x1.
        pointwise: values in a block of a 1x1 convolution.
        linear: values in a block of a linear layer.
    """

    kernels: float
    pointwise: int
    linear: int


SMALL_BLOCKS = Regime(1, 4, 4)
LARGE_BLOCKS_RESNET18 = Regime(2, 4, 4)
LARGE_BLOCKS_RESNET50 = Regime(2, 8, 4)
#: The published regimes, then ours for sizes that these do not reach.
REGIMES = (
    SMALL_BLOCKS,
    LARGE_BLOCKS_RESNET18,
    LARGE_BLOCKS_RESNET50,
    Regime(2, 8, 8),
    Regime(4, 16, 16),
    Regime(8, 32, 32),
    Regime(1, 2, 2),
    Regime(1 / 3, 2, 2),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Block size and codewords of one layer."""

    d: int
    n_codewords: int

    def bits(self, shape: Sequence[int]) -> int:
        """Bits of codes and codebook for a weight of this shape."""
        return math.prod(shape) // self.d * code_bits(self.n_codewords) + _CODEBOOK_BITS * self.d * self.n_codewords


def setting(shape: Sequence[int], regime: Regime, n_codewords: int) -> Setting:
    """What a regime and a number of codewords mean for a weight of this shape.

    Where the regime's block size does not divide the `Cin/groups * kh * kw` values of a row, the next smaller divisor
    is taken (the authors refuse such layers). Codewords are limited to a quarter of the blocks, rounded down to a
    power of two (PQF's rule; BGD's code takes half where the quarter is a power of two itself).
    """
    row, kernel = n_positions(shape), math.prod(shape[2:])
    wanted = regime.linear if len(shape) == 2 else regime.pointwise if kernel == 1 else round(regime.kernels * kernel)
    d = next(size for size in range(min(max(wanted, 1), row), 0, -1) if row % size == 0)
    most = max(shape[0] * row // d // _BLOCKS_PER_CODEWORD, 1)
    return Setting(d, min(n_codewords, 1 << most.bit_length() - 1))


def settings_for(weights: Mapping[str, Tensor], target_bits: int, *, method: str, seed: int = 0) -> dict[str, Setting]:
    """Settings of all layers for a size.

    For each regime the largest common number of codewords that fits is taken, and doubled in one layer after another,
    largest first, while that fits. Of all results within 10% below the target, the one with the least k-means error
    after a few iterations on a sample of blocks wins; errors of a layer are relative to its mean square.

    Args:
        weights: by layer name.
        target_bits: of codes and codebooks; exceeded by 1% at most.
        method: name for messages.
        seed: of the sample.

    Raises:
        ConfigError: if everything is above `1.01 * target_bits` or below `0.9 * target_bits`.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    budget, found, smallest = SLACK * target_bits, [], math.inf
    for regime in REGIMES:
        n_codewords = _MAX_CODEWORDS
        chosen = _common(shapes, regime, n_codewords)
        while _total(shapes, chosen) > budget and n_codewords > 2:
            n_codewords //= 2
            chosen = _common(shapes, regime, n_codewords)
        smallest = min(smallest, _total(shapes, chosen))
        if _total(shapes, chosen) <= budget:
            found.append(_filled(shapes, chosen, regime, budget))
    near = [chosen for chosen in found if _total(shapes, chosen) >= _NEAR * target_bits]
    if not near:
        reach = max((_total(shapes, chosen) for chosen in found), default=smallest)
        raise ConfigError(
            f"{method}: {target_bits} bits for {sum(map(math.prod, shapes.values()))} weights in {len(shapes)} layers "
            f"are out of reach; the nearest reachable size is {reach} bits"
        )
    if len(near) == 1:
        return near[0]
    return min(near, key=lambda chosen: sum(_trial_error(weights[n], s, seed) for n, s in chosen.items()))


def _trial_error(weight: Tensor, chosen: Setting, seed: int) -> float:
    """Sum of squared errors of a weight over its mean square, extrapolated from a sample of its blocks."""
    generator = torch.Generator().manual_seed(seed)
    vectors = blocks(weight, chosen.d)
    size = max(_TRIAL_BLOCKS, _BLOCKS_PER_CODEWORD * chosen.n_codewords)
    rows = torch.randperm(len(vectors), generator=generator)[:size].to(vectors.device)
    error = lloyd(vectors[rows], chosen.n_codewords, n_iters=_TRIAL_ITERS, generator=generator).objective[-1]
    return error * len(vectors) / len(rows) / max(float(vectors.double().square().mean()), 1e-30)


def _common(shapes: Mapping[str, Sequence[int]], regime: Regime, n_codewords: int) -> dict[str, Setting]:
    linear = min(_LINEAR_CODEWORDS * n_codewords, 2 * _MAX_CODEWORDS)
    return {n: setting(shape, regime, linear if len(shape) == 2 else n_codewords) for n, shape in shapes.items()}


def _total(shapes: Mapping[str, Sequence[int]], chosen: Mapping[str, Setting]) -> int:
    return sum(chosen[name].bits(shape) for name, shape in shapes.items())


def _filled(
    shapes: Mapping[str, Sequence[int]], chosen: Mapping[str, Setting], regime: Regime, budget: float
) -> dict[str, Setting]:
    out, bits = dict(chosen), _total(shapes, chosen)
    for name in sorted(shapes, key=lambda n: -math.prod(shapes[n])):
        doubled = setting(shapes[name], regime, 2 * out[name].n_codewords)
        more = doubled.bits(shapes[name]) - out[name].bits(shapes[name])
        if bits + more <= budget:
            out[name], bits = doubled, bits + more
    return out


class ProductWeight(RivalForm):
    """A weight whose rows are blocks out of one codebook; codes are fixed, codewords are trained.

    A codeword's gradient is the sum over its blocks. Training is in the dtype of the model; `harden_` rounds the
    codewords to the float16 they are stored in.

    Attributes:
        codebook: `(k, d)`.
        codes: int32 `(Cout, blocks a row)`.
    """

    codebook: nn.Parameter
    codes: Tensor

    def __init__(self, layer: str, recipe: Recipe, shape: Sequence[int], codebook: Tensor, codes: Tensor) -> None:
        """Stand in for a weight of this shape; `codes` has one entry a block, row by row."""
        super().__init__(layer, recipe)
        self.shape = tuple(shape)
        self.codebook = nn.Parameter(codebook.detach().clone())
        self.register_buffer("codes", codes.reshape(self.shape[0], -1).to(torch.int32))

    def forward(self) -> Tensor:
        """The dense weight."""
        return self.codebook.index_select(0, self.codes.flatten()).reshape(self.shape)

    def stored_bits(self) -> int:
        """Bits of codes and float16 codebook."""
        k, d = self.codebook.shape
        return Setting(d, k).bits(self.shape)

    @torch.no_grad()
    def harden_(self) -> None:
        """Round the codewords to float16."""
        self.codebook.copy_(self.codebook.half())

    def right_inverse(self, weight: Tensor) -> tuple[()]:
        """Nothing dense is kept, see `keep_nothing`."""
        return self.keep_nothing()

    def extra_repr(self) -> str:
        """For `print(model)`."""
        k, d = self.codebook.shape
        return f"shape={self.shape}, d={d}, n_codewords={k}"


def check_effort(options: Any, lows: Mapping[str, int], method: str) -> None:
    """Check that options are whole numbers of at least `lows`.

    Raises:
        ConfigError: listing every fault.
    """
    faults = [
        f"{method}: {name}={getattr(options, name)!r} is not a whole number of at least {low}"
        for name, low in lows.items()
        if type(getattr(options, name)) is not int or getattr(options, name) < low
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def planned(
    model: nn.Module, recipe: Recipe, target_bits: int, *, method: str, seed: int = 0
) -> tuple[list[Planned], dict[str, Setting]]:
    """All layers of the model, and the settings of those that the recipe compresses.

    Raises:
        ModelError: as `prune_`; if a layer is pruned or compressed already, or none is to be compressed.
        WeightError: on NaN or infinite weights, naming the layer.
        ConfigError: as `settings_for`.
    """
    layers = plan(model, recipe)
    for name, module, _ in layers:
        if form_of(module) is not None:
            raise ModelError(
                f"{method}: layer {name!r} is already pruned or compressed; bake_ the model to start again"
            )
    check_ready(model, layers)
    weights = {name: dense_weight(module) for name, module, layer in layers if layer.treatment == "compress"}
    if not weights:
        raise ModelError(f"{method}: the recipe compresses none of the {len(layers)} layers; leave at least one")
    return layers, settings_for(weights, target_bits, method=method, seed=seed)


def attach_int8_(layers: list[Planned], recipe: Recipe) -> None:
    """Int8 on the layers that the recipe treats so, as `cluster_` has it."""
    for name, module, layer in layers:
        if layer.treatment == "int8":
            weight: Any = module.weight
            attach(module, Int8Weight(name, recipe, Int8Weight.scales_of(weight)))


@dataclass(frozen=True)
class Clusters:
    """What `lloyd` found.

    Attributes:
        codebook: `(k, d)`.
        codes: `(n,)`.
        objective: squared error after every iteration.
    """

    codebook: Tensor
    codes: Tensor
    objective: tuple[float, ...]

    def of(self, vectors: Tensor) -> Clusters:
        """The same clusters with the means of other vectors."""
        return replace(self, codebook=means(vectors, self.codes, torch.zeros_like(self.codebook)))


def lloyd(
    vectors: Tensor,
    n_codewords: int,
    *,
    n_iters: int,
    generator: torch.Generator,
    noise: Callable[[int], float] | None = None,
) -> Clusters:
    """K-means from random rows; each iteration assigns, then takes means, which is where it ends.

    A codeword without members moves to one of the most populated clusters, slightly off its codeword, and assignment is
    repeated (BGD, section 3.2; theirs one at a time and moving both codewords by 1e-8, ours all at once, moving
    the new one only and by 1e-3 of the spread, which float32 resolves and which cannot raise the objective).

    Args:
        vectors: `(n, d)`, at least `n_codewords` of them.
        n_codewords: k.
        n_iters: most iterations; without noise it stops when no assignment changes.
        generator: on the CPU.
        noise: standard deviation at an iteration, as a share of each coordinate's own, of the noise on the vectors
            that means are taken of.
    """
    start = torch.randperm(len(vectors), generator=generator)[:n_codewords]
    codebook, codes = vectors[start.to(vectors.device)].clone(), None
    spread = vectors.std(0, correction=0)
    objective = []
    for i in range(n_iters):
        before, codes = codes, _split_empty(vectors, codebook, spread, generator)
        noisy = vectors
        if noise is not None:
            noisy = vectors + noise(i) * spread * torch.randn(vectors.shape, generator=generator).to(vectors)
        codebook = means(noisy, codes, codebook)
        objective.append(float((vectors - codebook[codes]).double().square().sum()))
        if noise is None and before is not None and torch.equal(before, codes):
            break
    assert codes is not None
    return Clusters(codebook, codes, tuple(objective))


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`(n,)` nearest codeword of each vector, the lowest among equals."""
    norms = codebook.square().sum(1)
    parts = vectors.split(max(_CHUNK // len(codebook), 1))
    return torch.cat([(norms - 2 * part @ codebook.T).argmin(1) for part in parts])


def means(vectors: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """Mean of every codeword's vectors; codewords without any stay."""
    members = torch.bincount(codes, minlength=len(codebook)).unsqueeze(1)
    sums = torch.zeros_like(codebook, dtype=torch.float64).index_add_(0, codes, vectors.double())
    return torch.where(members > 0, (sums / members.clamp_min(1)).to(codebook.dtype), codebook)


def _split_empty(vectors: Tensor, codebook: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """Assignments without empty clusters, as far as distinct vectors allow; moves codewords in place."""
    codes = nearest(vectors, codebook)
    for _ in range(_SPLIT_ROUNDS):
        members = torch.bincount(codes, minlength=len(codebook))
        empty = (members == 0).nonzero().flatten()[: int((members > 1).sum())]
        if len(empty) == 0:
            break
        crowded = members.topk(len(empty)).indices
        offset = torch.randn(len(empty), vectors.shape[1], generator=generator).to(vectors)
        codebook[empty] = codebook[crowded] + _SPLIT_NOISE * spread * offset
        codes = nearest(vectors, codebook)
    return codes


def blocks(weight: Tensor, d: int) -> Tensor:
    """`(n, d)` float32 blocks of a weight, row by row."""
    return weight.detach().float().reshape(-1, d)
