"""Compressed networks as plain, validated data: the one thing that crosses part borders.

Everything here is NumPy; no torch module, no file. Every convolution and linear weight of the network appears
once in `CompressedModel.layers`, in module order: as codebook + assignments + masks (`VQLayer`), as int8
(`Int8Layer`) or untouched (`DenseLayer`, whose values are among `tensors`). All remaining state is in
`tensors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mvq.errors import ShapeError, StreamError
from mvq.grouping import from_subvectors, n_subvectors, unpack_lanes, valid_lanes
from mvq.patterns import Pattern
from mvq.recipe import Codewords, Recipe, Role

Kind = Literal["conv", "linear"]


def index_dtype(n: int) -> type[np.uint16] | type[np.uint32]:
    """Smallest of uint16, uint32 that holds `0 .. n-1`."""
    return np.uint16 if n <= 1 << 16 else np.uint32


def code_bits(n: int) -> int:
    """`ceil(log2 n)`: bits of a fixed-length code for n values."""
    return (n - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Codebook:
    """An int8 codebook with one scale; a codeword's value is `scale * code`, rounded once in float32.

    Attributes:
        codes: int8 `(n_codewords, width)`; width d for masked, Q for packed codewords.
        scale: positive and finite, exactly representable in float32.
    """

    codes: NDArray[np.int8]
    scale: float

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int8 or self.codes.ndim != 2 or 0 in self.codes.shape:
            raise ShapeError(f"codebook: expected int8 (n_codewords, width), got {self.codes.dtype} {self.codes.shape}")
        with np.errstate(over="ignore", under="ignore"):
            scale = float(np.float32(self.scale))
        if not (math.isfinite(scale) and scale > 0):
            raise StreamError(f"codebook: scale {self.scale} is not positive and finite in float32")
        object.__setattr__(self, "scale", scale)

    @property
    def n_codewords(self) -> int:
        """Number of codewords k."""
        return self.codes.shape[0]

    @property
    def width(self) -> int:
        """Values of one codeword."""
        return self.codes.shape[1]

    @property
    def values(self) -> NDArray[np.float32]:
        """Float32 `(n_codewords, width)`."""
        return self.codes.astype(np.float32) * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class VQLayer:
    """One weight as codebook indices and mask ids.

    Attributes:
        name: module name, e.g. `layer1.0.conv1`.
        kind: `conv` or `linear`.
        role: place in the network, for the size conventions.
        shape: of the dense weight.
        pattern: N:M pattern.
        d: lanes of a subvector.
        codewords: `masked` or `packed`.
        codebook: key into `CompressedModel.codebooks`.
        n_codewords: size of that codebook.
        assignments: `(n_sub,)` row of the codebook.
        mask_ids: `(n_sub, d / M)`; shape `(n_sub, 0)` if the pattern is dense.
        masked_sse: squared error over kept weights against the dense original, as clustered.
        total_sse: squared error over all weights against the dense original, as clustered.

    Raises:
        ShapeError: if the arrays do not fit the shape.
        StreamError: if an assignment or mask id is out of range.
    """

    name: str
    kind: Kind
    role: Role
    shape: tuple[int, ...]
    pattern: Pattern
    d: int
    codewords: Codewords
    codebook: str
    n_codewords: int
    assignments: NDArray[np.unsignedinteger]
    mask_ids: NDArray[np.unsignedinteger]
    masked_sse: float = math.nan
    total_sse: float = math.nan

    def __post_init__(self) -> None:
        if self.assignments.shape != (self.n_sub,) or self.mask_ids.shape != (self.n_sub, self.n_blocks):
            raise ShapeError(
                f"layer {self.name!r}: shape {self.shape} with d={self.d}, pattern {self.pattern} needs "
                f"assignments {(self.n_sub,)} and mask ids {(self.n_sub, self.n_blocks)}, "
                f"got {self.assignments.shape} and {self.mask_ids.shape}"
            )
        for what, ids, limit in (
            ("assignment", self.assignments, self.n_codewords),
            ("mask id", self.mask_ids, self.pattern.n_masks),
        ):
            for bad in (int(ids.max(initial=0)), int(ids.min(initial=0))):
                if ids.size and not 0 <= bad < limit:
                    raise StreamError(f"layer {self.name!r}: {what} {bad} is not in 0..{limit - 1}")

    @property
    def n_sub(self) -> int:
        """Number of subvectors."""
        return n_subvectors(self.shape, self.d)

    @property
    def n_blocks(self) -> int:
        """Mask ids of a subvector: d / M, or 0 where the pattern is dense and nothing is stored."""
        return 0 if self.pattern.is_dense else self.d // self.pattern.group

    @property
    def width(self) -> int:
        """Values of one codeword: d if masked, Q if packed."""
        return self.pattern.kept_per(self.d) if self.codewords == "packed" else self.d

    @property
    def n_weights(self) -> int:
        """Weights of the dense layer, padding not counted."""
        return math.prod(self.shape)

    @property
    def bits_assign(self) -> int:
        """Bits of all assignments, `n_sub * ceil(log2 k)`."""
        return self.n_sub * code_bits(self.n_codewords)

    @property
    def bits_mask(self) -> int:
        """Bits of all mask ids, `n_sub * d/M * ceil(log2 C(M, N))`."""
        return self.n_sub * self.n_blocks * self.pattern.mask_bits

    @property
    def bits_codebook(self) -> int:
        """Bits of the codebook's codes, `k * width * 8`; a shared codebook costs them once for all layers."""
        return self.n_codewords * self.width * 8

    def mask(self) -> NDArray[np.bool_]:
        """`(n_sub, d)` lanes that carry a weight: kept by the pattern and not padding."""
        valid = valid_lanes(self.shape, self.d)
        if self.pattern.is_dense:
            return np.array(valid)
        return self.pattern.unrank(self.mask_ids) & valid

    def dense(self, codebook: Codebook) -> NDArray[np.float32]:
        """The dense float32 weight. A plain reference; the file reader decodes with a faster equal path."""
        mask = self.mask()
        rows = codebook.values[self.assignments]
        subvectors = unpack_lanes(rows, mask) if self.codewords == "packed" else np.where(mask, rows, np.float32(0))
        return np.ascontiguousarray(from_subvectors(subvectors, self.shape))


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """One weight as symmetric int8 codes with a float32 scale for each output channel.

    Attributes:
        name: module name.
        kind: `conv` or `linear`.
        role: place in the network.
        codes: int8, shape of the dense weight.
        scales: float32 `(Cout,)`, positive.
    """

    name: str
    kind: Kind
    role: Role
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.codes.dtype != np.int8 or self.codes.ndim < 2 or self.scales.shape != self.codes.shape[:1]:
            raise ShapeError(
                f"layer {self.name!r}: int8 codes {self.codes.dtype} {self.codes.shape} with scales "
                f"{self.scales.shape}; expected int8 (Cout, ...) and (Cout,)"
            )
        if not (np.isfinite(self.scales).all() and (self.scales > 0).all()):
            raise StreamError(f"layer {self.name!r}: a scale is not positive and finite")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return self.codes.shape

    @property
    def n_weights(self) -> int:
        """Weights of the layer."""
        return self.codes.size

    def dense(self) -> NDArray[np.float32]:
        """The dense float32 weight, `scale * code`."""
        scales = self.scales.astype(np.float32).reshape(-1, *[1] * (self.codes.ndim - 1))
        return self.codes.astype(np.float32) * scales


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """One weight left as it was; its values are `CompressedModel.tensors[name + ".weight"]`."""

    name: str
    kind: Kind
    role: Role
    shape: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """Weights of the layer."""
        return math.prod(self.shape)


Layer = VQLayer | Int8Layer | DenseLayer


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """A whole network.

    Attributes:
        recipe: what it was compressed with.
        layers: every convolution and linear weight, in module order.
        codebooks: by key; a layer's own codebook has the layer's name as key, a shared one `network.<i>`.
        tensors: all other state (batch norm, biases, buffers, dense weights) by `state_dict` name.
        provenance: JSON-serialisable facts: model name, task, preprocessing, ... Never needed to decode.
    """

    recipe: Recipe
    layers: tuple[Layer, ...]
    codebooks: Mapping[str, Codebook]
    tensors: Mapping[str, NDArray]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for layer in self.layers:
            if isinstance(layer, VQLayer):
                codebook = self.codebooks.get(layer.codebook)
                if codebook is None:
                    raise ShapeError(f"layer {layer.name!r}: codebook {layer.codebook!r} is missing")
                if (codebook.n_codewords, codebook.width) != (layer.n_codewords, layer.width):
                    raise ShapeError(
                        f"layer {layer.name!r}: codebook {layer.codebook!r} is {codebook.codes.shape}, "
                        f"expected {(layer.n_codewords, layer.width)}"
                    )
            elif isinstance(layer, DenseLayer) and f"{layer.name}.weight" not in self.tensors:
                raise ShapeError(f"layer {layer.name!r}: weight {layer.name + '.weight'!r} is missing from the tensors")

    @property
    def vq_layers(self) -> tuple[VQLayer, ...]:
        """The vector-quantized layers, in module order."""
        return tuple(layer for layer in self.layers if isinstance(layer, VQLayer))

    def dense_weight(self, layer: Layer) -> NDArray[np.float32]:
        """The dense float32 weight of one of `layers`."""
        if isinstance(layer, VQLayer):
            return layer.dense(self.codebooks[layer.codebook])
        if isinstance(layer, Int8Layer):
            return layer.dense()
        return self.tensors[f"{layer.name}.weight"].astype(np.float32)
