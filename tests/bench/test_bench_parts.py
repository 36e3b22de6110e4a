"""Counting, statistics and data, each against an obvious reference."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.networks.cifar_resnet import PREPROCESSING, ShiftedImages, jpeg_test, lossless_test, train_all
from hypothesis import given
from hypothesis import strategies as st

from mvq.allocate import achieved_bits
from mvq.baselines.forms import compressed_bits
from mvq.bench.measuring import model_bits
from mvq.bench.methods import Point, find
from mvq.bench.rows import Rows
from mvq.bench.statistics import mcnemar, paired, spread
from mvq.demo import network
from mvq.errors import ConfigError
from mvq.nn import VQWeight, cluster_, extract, is_soft
from mvq.recipe import Recipe
from mvq.sizes import sizes


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_whole_model_is_what_the_file_formula_says(scope: str) -> None:
    model = cluster_(network(), Recipe(pattern="4:16", n_codewords=64, scope=scope, classifier="int8", max_iters=2))
    compressed = extract(model)
    padding = sum(-v.bits_assign % 8 + -v.bits_mask % 8 for v in compressed.vq_layers)
    assert model_bits(model) == sizes(compressed)["whole_model"].bits - padding


@given(st.integers(1, 12), st.integers(1, 12))
def test_mcnemar_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    n = first + second
    probabilities = [math.comb(n, i) / 2**n for i in range(n + 1)]
    unlikely = sum(p for p in probabilities if p <= probabilities[first] * (1 + 1e-9))
    assert mcnemar(first, second) == pytest.approx(unlikely)


def test_mcnemar_without_differences() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(1500, 1200) == pytest.approx(8.5e-9, rel=0.1)


def test_paired(tmp_path: Path) -> None:
    table = Rows(tmp_path / "rows.csv", ["val"])
    right = {("a", 0): "1110", ("b", 0): "1000", ("a", 1): "1111", ("b", 1): "1011"}
    for (method, seed), bits in right.items():
        row = {"key": f"{method}{seed}", "network": "n", "size_ratio": 1.0, "method": method, "seed": seed, "val_n": 4}
        table.add(row, {"val": np.array([bit == "1" for bit in bits])})
    table = Rows(tmp_path / "rows.csv", ["val"])
    rows = {name: [r for r in table.rows.values() if r["method"] == name] for name in "ab"}
    found = paired(table, rows["a"], rows["b"], "val")
    assert found is not None
    # By image, averaged over both seeds: 0, 1, 1/2, 0.
    assert found.difference == pytest.approx(37.5)
    assert found.standard_error == pytest.approx(100 * np.std([0, 1, 0.5, 0], ddof=1) / 2)
    assert (found.p_value, found.n_seeds) == (0.25, 2)
    assert paired(table, rows["a"], [], "val") is None


def test_spread() -> None:
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    assert math.isnan(spread([1.0]).deviation)


def test_unknown_method() -> None:
    with pytest.raises(ConfigError) as error:
        find("magic")
    assert str(error.value).startswith("method 'magic' is not known; known are allocated, ours, D, packed, A")


@pytest.mark.parametrize(
    ("name", "codewords", "learned"),
    [
        ("D", "masked", False),
        ("packed", "packed", False),
        ("ours", "packed", True),
        ("benchmarks.parts:equalized", "packed", False),
    ],
)
def test_what_methods_with_masks_add(name: str, codewords: str, learned: bool) -> None:
    method, model = find(name), network()
    recipe = Recipe(pattern="4:16", scope="network", classifier="int8", max_iters=2)
    bits = 2 * achieved_bits(model, recipe).n_weights
    model = method.compress(model, Point(recipe=recipe, target_bits=bits))
    assert {str(module.codewords) for module in model.modules() if isinstance(module, VQWeight)} == {codewords}
    assert method.uses_masks
    assert is_soft(model) is learned
    assert 0.9 * bits < compressed_bits(model) <= bits


def test_shifted_images_are_crops() -> None:
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    batches = list(ShiftedImages(images, torch.arange(7), 3, seed=5))
    assert [len(labels) for _, labels in batches] == [3, 3]
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for pixels, label in ((p, int(n)) for x, y in batches for p, n in zip(x, y, strict=True)):
        crops = [padded[label, :, y : y + 32, x : x + 32] for y, x in itertools.product(range(9), repeat=2)]
        wanted = PREPROCESSING.array(torch.stack([c for crop in crops for c in (crop, crop.flip(2))]))
        assert (wanted - pixels).abs().amax((1, 2, 3)).min() < 1e-5


def test_shifted_images_follow_seed_and_epoch() -> None:
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    first, second = ShiftedImages(images, labels, 4, seed=1), ShiftedImages(images, labels, 4, seed=1)
    epochs = [torch.cat([x for x, _ in first]) for _ in range(3)]
    second.set_epoch(2)
    assert torch.equal(torch.cat([x for x, _ in second]), epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(torch.cat([x for x, _ in ShiftedImages(images, labels, 4, seed=2)]), epochs[0])


def test_cifar_data(data_root: Path) -> None:
    train = train_all(batch_size=128)
    assert len(train) == 78
    assert torch.bincount(train.labels).min() > 900
    assert sum(len(y) for _, y in lossless_test()) == 700
    assert sum(len(y) for _, y in jpeg_test()) == 4000
