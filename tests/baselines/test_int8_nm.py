"""Int8 and N:M masks without vector quantization."""

from dataclasses import replace

import pytest
import torch
from rivals import N_WEIGHTS, RECIPE, check_rival, compressed, net

from mvq.baselines.forms import compressed_bits
from mvq.baselines.int8_nm import PATTERNS, Int8NMWeight, int8_nm_, int8_nm_bits, int8_nm_pattern
from mvq.errors import ConfigError, ModelError
from mvq.flops import count
from mvq.nn import NMMask, bake_, prune_
from mvq.nn.functional import magnitude_mask
from mvq.nn.layers import form_of
from mvq.patterns import Pattern


def test_bits() -> None:
    """4:16 keeps 2 bits a weight and has C(16, 4) = 1820 masks, 11 bits for 16 weights."""
    assert int8_nm_bits((64, 8, 3, 3), Pattern(4, 16)) == 64 * 72 * 2 + 64 * 72 // 16 * 11 + 32 * 64
    assert int8_nm_bits((64, 8, 3, 3), Pattern(1, 8)) == 64 * 72 + 64 * 72 // 8 * 3 + 32 * 64
    # A last group of 8 channels keeps 4 of them, of 2 channels 2.
    assert int8_nm_bits((24, 5), Pattern(4, 16)) == 8 * 8 * 5 + 2 * 5 * 11 + 32 * 24
    assert int8_nm_bits((18, 5), Pattern(4, 16)) == 8 * 6 * 5 + 2 * 5 * 11 + 32 * 18


def test_pattern_is_the_nearest_below() -> None:
    shapes = [(48, 16, 3, 3), (40, 48, 1, 1), (10, 40)]
    for bits in (1.0, 1.5, 2.5, 4.0):
        target = round(bits * N_WEIGHTS)
        pattern = int8_nm_pattern(net(), RECIPE, target)
        sizes = {p: sum(int8_nm_bits(shape, p) for shape in shapes) for p in PATTERNS}
        assert sizes[pattern] == max(size for size in sizes.values() if size <= 1.01 * target)
        assert compressed_bits(int8_nm_(net(), RECIPE, target)) == sizes[pattern]


@pytest.mark.parametrize("decay", [None, 5e-4])
def test_trains_to_what_it_stores(decay: float | None) -> None:
    model = check_rival(int8_nm_, 4.0, decay=decay)
    before = int8_nm_(net(), RECIPE, 4 * N_WEIGHTS)
    moved = 0
    for (form, weight), (old, _) in zip(compressed(model), compressed(before), strict=True):
        assert isinstance(form, Int8NMWeight)
        assert isinstance(old, Int8NMWeight)
        codes = weight / form.scales.reshape(-1, *[1] * (weight.ndim - 1))
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert codes.abs().max() < 128.5
        rows = form.mask.reshape(len(weight), -1)
        assert not weight[~form.mask].any()
        for low in range(0, len(rows), form.pattern.group):
            block = rows[low : low + form.pattern.group]
            assert (block.sum(0) == min(form.pattern.keep, len(block))).all()
        assert 8 * int(form.mask.sum()) < form.stored_bits()
        moved += int((form.mask != old.mask).sum())
    assert (moved > 0) == (decay is not None)


def test_sr_ste_gradient() -> None:
    weight = torch.tensor([[0.9], [0.1], [-0.5], [0.2]]) * torch.ones(4, 3)
    form = Int8NMWeight("layer", RECIPE, weight, Pattern(2, 4), magnitude_mask(weight, Pattern(2, 4)), decay=0.1)
    leaf = weight.clone().requires_grad_()
    form(leaf).sum().backward()
    pruned = torch.tensor([[False], [True], [False], [True]])
    torch.testing.assert_close(leaf.grad, 1 + 0.1 * weight * pruned)
    # The mask follows the weight until the end of training.
    form(weight.flip(0))
    assert torch.equal(form.mask, pruned.expand(4, 3))
    form.harden_()
    form(weight)
    assert torch.equal(form.mask, pruned.expand(4, 3))


def test_masks_of_sparse_training_stay() -> None:
    target = 2 * N_WEIGHTS
    pattern = int8_nm_pattern(net(), RECIPE, target)
    sparse = replace(RECIPE, pattern=pattern, d=pattern.group)
    model = prune_(net(), sparse)
    masks = []
    for module in (model[2], model[4], model[8]):  # type: ignore[index]
        form = form_of(module)
        assert isinstance(form, NMMask)
        # Some other mask of the pattern, so that the magnitudes would not give it again.
        form.mask.copy_(magnitude_mask(torch.randn(form.mask.shape), pattern))
        masks.append(form.mask.clone())
    int8_nm_(model, sparse, target)
    assert [torch.equal(f.mask, m) for (f, _), m in zip(compressed(model), masks, strict=True)] == [True] * 3  # type: ignore[arg-type]

    # The harness makes weights plain in between: the zeros are then the smallest magnitudes.
    baked = bake_(prune_(net(), sparse))
    int8_nm_(baked, RECIPE, target)
    direct = int8_nm_(net(), RECIPE, target)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(compressed(baked), compressed(direct), strict=True))


def test_executed_work_is_that_of_the_mask() -> None:
    model = int8_nm_(net(), RECIPE, 2 * N_WEIGHTS)
    kept = [int(form.mask.sum()) for form, _ in compressed(model)]  # type: ignore[arg-type]
    layers = count(model, torch.zeros(1, 3, 12, 12)).layers
    assert layers[0].executed == layers[0].dense
    assert [layer.executed for layer in layers[1:]] == [kept[0] * 9, kept[1] * 9, kept[2]]


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"^int8_nm: 100 bits are out of reach; the nearest reachable size is \d+ "):
        int8_nm_(net(), RECIPE, 100)
    with pytest.raises(ConfigError) as caught:
        int8_nm_(net(), RECIPE, N_WEIGHTS, decay=-1.0)
    assert str(caught.value) == "int8_nm: decay=-1.0 is not at least 0; None is for fixed masks"
    pattern = int8_nm_pattern(net(), RECIPE, 2 * N_WEIGHTS)
    with pytest.raises(ModelError) as other:
        int8_nm_(prune_(net(), RECIPE), RECIPE, 2 * N_WEIGHTS)
    assert str(other.value) == (
        f"int8_nm: layer '2' was pruned 4:16, the size asks for {pattern}; prune with int8_nm_pattern, or bake_ the "
        "model first"
    )
