"""Sizes of a compressed network under every convention, each named.

    CR = 32 * n_weights / (b_assign + b_mask + b_codebook)            (MVQ, with b_f = 32)

Conventions, each including the one before it:

* `compressed_convs`: vector-quantized convolutions by the formula above;
* `plus_first_conv`: and every other convolution as stored (first, depth-wise or skipped ones);
* `plus_classifier`: and every linear layer's weight as stored;
* `whole_model`: and all remaining state (batch norm, biases, buffers), codebook scales, byte padding of
  streams;
* `on_disk`: the file, with its header. Present only for a file.

Ratios are against the same weights in float32 (other state against its float32 or integer size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mvq.compressed import CompressedModel, DenseLayer, Int8Layer, Layer, VQLayer


@dataclass(frozen=True)
class Size:
    """Compressed and dense size under one convention.

    Attributes:
        bits: compressed size in bits.
        dense_bits: size of the same parameters uncompressed, in bits.
    """

    bits: int
    dense_bits: int

    @property
    def bytes(self) -> int:
        """Compressed bytes, rounded up."""
        return -(-self.bits // 8)

    @property
    def ratio(self) -> float:
        """Dense over compressed; NaN when the convention covers nothing."""
        return self.dense_bits / self.bits if self.bits else float("nan")

    def __add__(self, other: Size) -> Size:
        return Size(self.bits + other.bits, self.dense_bits + other.dense_bits)


def _stored_bits(model: CompressedModel, layer: Layer) -> int:
    if isinstance(layer, VQLayer):
        return layer.bits_assign + layer.bits_mask
    if isinstance(layer, Int8Layer):
        return 8 * layer.codes.size + 32 * layer.scales.size
    return 8 * model.tensors[f"{layer.name}.weight"].nbytes


def _group(model: CompressedModel, layers: list[Layer], counted: set[str]) -> Size:
    """Size of these layers; a shared codebook is counted with the first layer that uses it."""
    bits = sum(_stored_bits(model, layer) for layer in layers)
    for layer in layers:
        if isinstance(layer, VQLayer) and layer.codebook not in counted:
            counted.add(layer.codebook)
            bits += layer.bits_codebook
    return Size(bits, 32 * sum(layer.n_weights for layer in layers))


def sizes(model: CompressedModel, file_bytes: int | None = None) -> dict[str, Size]:
    """Size under each convention of this module's docstring, in its order.

    Args:
        model: the network.
        file_bytes: length of its file; adds `on_disk`.
    """
    counted: set[str] = set()
    convs = [layer for layer in model.layers if layer.kind == "conv"]
    compressed = _group(model, [layer for layer in convs if isinstance(layer, VQLayer)], counted)
    first = compressed + _group(model, [layer for layer in convs if not isinstance(layer, VQLayer)], counted)
    classifier = first + _group(model, [layer for layer in model.layers if layer.kind == "linear"], counted)
    out = {"compressed_convs": compressed, "plus_first_conv": first, "plus_classifier": classifier}
    out["whole_model"] = classifier + _rest(model)
    if file_bytes is not None:
        out["on_disk"] = Size(8 * file_bytes, out["whole_model"].dense_bits)
    return out


def _rest(model: CompressedModel) -> Size:
    dense_names = {f"{layer.name}.weight" for layer in model.layers if isinstance(layer, DenseLayer)}
    stored = dense = 0
    for name, tensor in model.tensors.items():
        if name not in dense_names:
            stored += 8 * tensor.nbytes
            dense += 8 * tensor.size * (4 if np.issubdtype(tensor.dtype, np.floating) else tensor.itemsize)
    stored += 32 * len(model.codebooks)
    for layer in model.vq_layers:
        stored += -layer.bits_assign % 8 + -layer.bits_mask % 8
    return Size(stored, dense)
