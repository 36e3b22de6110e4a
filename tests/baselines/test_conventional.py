"""The paper's ablation on small networks."""

import pytest
import torch
from torch import nn

from mvq import Recipe
from mvq.allocate import achieved_bits
from mvq.baselines import CASES, ablation, case_, cluster_conventional, equal_size
from mvq.errors import ConfigError
from mvq.nn import extract


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3))


def test_equal_size_of_the_papers_setting() -> None:
    recipes = equal_size("mvq-22x")
    assert list(recipes) == list(CASES)
    for case in "AB":
        assert (str(recipes[case].pattern), recipes[case].d, recipes[case].n_codewords) == ("1:1", 8, 1024)
        assert recipes[case].kmeans == "plain"
    assert recipes["C"].kmeans == "plain"
    assert (recipes["C"].pattern, recipes["C"].n_codewords) == (recipes["D"].pattern, recipes["D"].n_codewords)
    assert recipes["D"] == Recipe.preset("mvq-22x")
    assert (recipes["packed"].codewords, recipes["packed"].n_codewords) == ("packed", 1024)


@pytest.mark.parametrize("preset", ["mvq-16x", "mvq-19x", "mvq-22x", "mvq-25x", "mvq-28x"])
def test_sizes_are_near_for_all_presets(preset: str) -> None:
    recipes = equal_size(preset)
    d, a = recipes["D"], recipes["A"]
    bits = (d.n_codewords.bit_length() - 1 + d.d // d.pattern.group * d.pattern.mask_bits) / d.d
    assert (a.n_codewords.bit_length() - 1) / a.d == pytest.approx(bits, rel=0.06)
    assert 0.5 <= a.n_codewords * a.d / (d.n_codewords * d.d) <= 2


def test_ablation_has_the_papers_order() -> None:
    recipe = Recipe(rows_per_codeword=0, max_iters=10)
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reports = {r.case: r for r in ablation(model, recipe)}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert tuple(reports) == CASES
    # Table 3: D < B < A and D < C in total error, packed lower still.
    order = ["packed", "D", "B", "A"]
    assert sorted(order, key=lambda case: reports[case].total_sse) == order
    assert reports["C"].total_sse > 5 * reports["D"].total_sse
    for case in ("C", "D", "packed"):
        assert reports[case].total_sse == pytest.approx(reports[case].important_sse)
        assert reports[case].dense_sse > reports[case].total_sse
    assert reports["B"].important_sse < reports["B"].total_sse
    assert reports["A"].dense_sse == reports["A"].total_sse
    # 9 + 11 bits for 16 weights; A and B: 10 bits for 8. Two layers: 64 outputs from 32 and from 64 channels.
    n_sub = 4 * 32 * 9 + 4 * 64 * 9
    expected = n_sub * 20 + 2 * 512 * 16 * 8
    assert [reports[case].bits for case in "ABCD"] == [expected] * 4
    assert reports["packed"].bits == n_sub * 21 + 2 * 1024 * 4 * 8


def test_case_b_decodes_densely() -> None:
    recipe = Recipe(n_codewords=32, rows_per_codeword=0, max_iters=3)
    layers = extract(case_(build(), "B", recipe)).vq_layers
    assert all(layer.pattern.is_dense and layer.bits_mask == 0 for layer in layers)


def test_conventional_clustering_takes_the_best_length_within_a_size() -> None:
    model, recipe = build(), Recipe(n_codewords=32, rows_per_codeword=0, max_iters=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    limit = achieved_bits(model, recipe).total

    def errors(lanes: tuple[int, ...], most: int = 4096) -> tuple[float, int, int]:
        found = extract(cluster_conventional(model, recipe, limit, lanes=lanes, most_codewords=most))
        bits = sum(layer.bits_assign + layer.bits_mask for layer in found.vq_layers)
        bits += sum(8 * codebook.codes.size + 32 for codebook in found.codebooks.values())
        assert bits <= limit
        assert all(layer.pattern.is_dense for layer in found.vq_layers)
        error = sum(
            float(((found.dense_weight(layer) - before[f"{layer.name}.weight"].numpy()) ** 2).sum())
            for layer in found.vq_layers
        )
        return error, found.vq_layers[0].d, max(codebook.codes.shape[0] for codebook in found.codebooks.values())

    each = [errors((d,)) for d in (2, 4, 8)]
    assert len({d for _, d, _ in each}) == 3
    assert errors((2, 4, 8)) == min(each)
    assert errors((2, 4, 8), most=min(k for _, _, k in each))[2] == min(k for _, _, k in each)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"no subvector length of 2, 4 reaches 10 bits with at most 4096 codewords"):
        cluster_conventional(model, recipe, 10, lanes=(2, 4), most_codewords=4096)


def test_errors() -> None:
    def rendered(call) -> str:
        with pytest.raises(ConfigError) as caught:
            call()
        return str(caught.value)

    assert rendered(lambda: case_(build(), "E", "mvq-22x")) == "case 'E' is not one of A, B, C, D, packed"
    assert rendered(lambda: equal_size(Recipe(codewords="packed", n_codewords=500))) == (
        "equal_size: codewords='packed', kmeans='masked', n_codewords=500; case D has masked codewords, masked k-means "
        "and a power of two of codewords"
    )
    assert rendered(lambda: equal_size(Recipe(overrides={"a": {"d": 32}, "b": {"treatment": "skip"}}))) == (
        "equal_size: overrides 'a' change the size of layers; only a treatment may be overridden"
    )
