"""Sizes against arithmetic done by hand, and against the published ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mvq.compressed import Codebook, CompressedModel, DenseLayer, Int8Layer, VQLayer
from mvq.grouping import n_subvectors
from mvq.patterns import Pattern
from mvq.recipe import Recipe
from mvq.sizes import Size, sizes


def _layer(name: str, shape: tuple[int, ...], pattern: str, d: int, k: int, **more) -> VQLayer:
    parsed = Pattern.parse(pattern)
    n_sub = n_subvectors(shape, d)
    n_blocks = 0 if parsed.is_dense else d // parsed.group
    return VQLayer(
        name=name,
        kind="conv" if len(shape) == 4 else "linear",
        role="conv" if len(shape) == 4 else "classifier",
        shape=shape,
        pattern=parsed,
        d=d,
        codewords=more.get("codewords", "masked"),
        codebook=more.get("codebook", name),
        n_codewords=k,
        assignments=np.zeros(n_sub, np.uint16),
        mask_ids=np.zeros((n_sub, n_blocks), np.uint16),
    )


def _model(layers, tensors=None) -> CompressedModel:
    codebooks = {
        layer.codebook: Codebook(np.zeros((layer.n_codewords, layer.width), np.int8), 1.0)
        for layer in layers
        if isinstance(layer, VQLayer)
    }
    return CompressedModel(Recipe(), tuple(layers), codebooks, tensors or {})


def _resnet_convs(blocks: tuple[int, ...], *, bottleneck: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a ResNet's convolutions but the first (He et al. 2016, table 1)."""
    shapes = {}
    n_in = 64
    for stage, (n_blocks, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), 1):
        n_out = 4 * width if bottleneck else width
        for block in range(n_blocks):
            kernels = ((1, n_in, width), (3, width, width), (1, width, n_out))
            if not bottleneck:
                kernels = ((3, n_in, width), (3, width, width))
            for i, (size, cin, cout) in enumerate(kernels, 1):
                shapes[f"layer{stage}.{block}.conv{i}"] = (cout, cin, size, size)
            if block == 0 and (stage > 1 or bottleneck):
                shapes[f"layer{stage}.0.downsample.0"] = (n_out, n_in, 1, 1)
            n_in = n_out
    return shapes


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "n_layers", "n_weights", "bits_per_weight", "ratio"),
    [
        ((2, 2, 2, 2), False, 19, 11_157_504, 1.362, 23.5),
        ((3, 4, 6, 3), True, 52, 23_445_504, 1.395, 22.9),
    ],
)
def test_published_ratios(blocks, bottleneck: bool, n_layers, n_weights, bits_per_weight, ratio) -> None:
    shapes = _resnet_convs(blocks, bottleneck=bottleneck)
    layers = [_layer(name, shape, "4:16", 16, 512) for name, shape in shapes.items()]
    size = sizes(_model(layers))["compressed_convs"]
    assert len(layers) == n_layers
    weights = sum(layer.n_weights for layer in layers)
    assert weights == n_weights
    assert round(size.bits / weights, 3) == bits_per_weight
    assert round(size.ratio, 1) == ratio
    assert size.dense_bits == 32 * weights


def test_resnet18_by_hand() -> None:
    layers = [_layer(n, s, "4:16", 16, 512) for n, s in _resnet_convs((2, 2, 2, 2), bottleneck=False).items()]
    n_sub = 11_157_504 // 16
    # 9 bits of index and 11 of mask a subvector; 19 codebooks of 512 codewords of 16 bytes
    assert sizes(_model(layers))["compressed_convs"].bits == n_sub * (9 + 11) + 19 * 512 * 16 * 8


def test_every_convention_by_hand() -> None:
    stem = Int8Layer("stem", "conv", "first_conv", np.zeros((4, 3, 3, 3), np.int8), np.ones(4, np.float32))
    conv = _layer("conv", (16, 5, 1, 1), "2:4", 8, 6)
    skipped = DenseLayer("proj", "conv", "conv", (4, 16, 1, 1))
    head = _layer("fc", (10, 16), "1:2", 4, 3, codewords="packed")
    tensors = {
        "proj.weight": np.zeros((4, 16, 1, 1), np.float16),
        "fc.bias": np.zeros(10, np.float16),
        "bn.running_mean": np.zeros(16, np.float32),
        "bn.num_batches_tracked": np.zeros((), np.int64),
    }
    found = sizes(_model([stem, conv, skipped, head], tensors), file_bytes=5000)
    assert list(found) == ["compressed_convs", "plus_first_conv", "plus_classifier", "whole_model", "on_disk"]
    # conv: 10 subvectors of one 3-bit index and two 3-bit mask ids; 6 codewords of 8 bytes
    convs = Size(10 * 3 + 10 * 2 * 3 + 6 * 8 * 8, 32 * 80)
    assert found["compressed_convs"] == convs
    # stem: 108 bytes and 4 scales; proj: 64 halves
    first = Size(convs.bits + 8 * 108 + 32 * 4 + 16 * 64, convs.dense_bits + 32 * 108 + 32 * 64)
    assert found["plus_first_conv"] == first
    # fc: 3 groups of 4 outputs at 16 inputs, 2-bit index, two 1-bit mask ids; 3 packed codewords of 2 bytes
    classifier = Size(first.bits + 48 * 2 + 48 * 2 + 3 * 2 * 8, first.dense_bits + 32 * 160)
    assert found["plus_classifier"] == classifier
    # rest: halves for 10 biases, 16 means, one int64; 2 codebook scales; streams of 30, 60, 96, 96 bits to
    # whole bytes
    whole = Size(classifier.bits + 160 + 512 + 64 + 64 + 2 + 4, classifier.dense_bits + 320 + 512 + 64)
    assert found["whole_model"] == whole
    assert found["on_disk"] == Size(40000, whole.dense_bits)
    assert found["on_disk"].bytes == 5000


def test_shared_codebook_is_counted_once() -> None:
    layers = [_layer(n, (16, 4, 1, 1), "4:16", 16, 8, codebook="network.0") for n in "ab"]
    assert sizes(_model(layers))["compressed_convs"].bits == 2 * 4 * (3 + 11) + 8 * 16 * 8


def test_codebook_shared_with_the_classifier_counts_among_the_convolutions() -> None:
    fc = _layer("fc", (16, 4), "4:16", 16, 8, codebook="network.0")
    conv = _layer("conv", (16, 4, 1, 1), "4:16", 16, 8, codebook="network.0")
    found = sizes(_model([fc, conv]))
    assert found["compressed_convs"].bits == 4 * (3 + 11) + 8 * 16 * 8
    assert found["plus_classifier"].bits - found["plus_first_conv"].bits == 4 * (3 + 11)


def test_nothing_covered_has_no_ratio() -> None:
    found = sizes(_model([]))
    assert found["compressed_convs"] == Size(0, 0)
    assert math.isnan(found["compressed_convs"].ratio)


def test_bytes_round_up() -> None:
    assert [Size(bits, 0).bytes for bits in (0, 1, 8, 9)] == [0, 1, 1, 2]
    assert Size(8, 64).ratio == 8.0
