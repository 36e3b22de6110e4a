"""Layer-wise choices under a size: within it, better than one setting for all, and plain data."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mvq.allocate import (
    achieved_bits,
    allocate,
    allocate_untrained,
    default_candidates,
    dense_candidates,
    fisher,
    layer_fisher,
)
from mvq.allocate.bits import index_and_mask_bits
from mvq.baselines.forms import compressed_bits
from mvq.errors import ConfigError, DataError, ModelError
from mvq.flops import count
from mvq.nn import VQWeight, bake_, cluster_, prune_
from mvq.nn.layers import form_of
from mvq.recipe import LayerRecipe, Recipe

OPTIONS = {
    scope: [
        LayerRecipe(pattern=p, d=d, n_codewords=k, codewords=kind)
        for p, d, k in (("2:16", 16, 64), ("4:16", 16, 64), ("8:16", 16, 16), ("1:2", 8, 16), ("1:2", 8, 64))
    ]
    for scope, kind in (("layer", "masked"), ("network", "packed"))
}


def net():
    """Layers of very different energy, so that one setting for all is a bad one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), *(nn.Conv2d(64 if i else 16, 64, 3) for i in range(3)))
    with torch.no_grad():
        for i, scale in enumerate((1.0, 8.0, 1.0, 0.2)):
            model[i].weight *= scale
    return model


def total_error(model, recipe):
    clustered = cluster_(net(), recipe)
    forms = [form_of(m) for m in clustered]
    return sum(f.total_sse for f in forms if isinstance(f, VQWeight))


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_choice_fits_and_beats_every_uniform_setting(scope):
    recipe = Recipe(scope=scope, rows_per_codeword=0, max_iters=20)
    found = allocate(net(), recipe, ratio=26.0, candidates=OPTIONS[scope])
    limit = 32 * achieved_bits(net(), found).n_weights / 26.0
    assert compressed_bits(cluster_(net(), found)) == achieved_bits(net(), found).total <= limit
    uniform = [
        replace(recipe, pattern=o.pattern, d=o.d, n_codewords=o.n_codewords, codewords=o.codewords)
        for o in OPTIONS[scope]
    ]
    rivals = [total_error(net(), r) for r in uniform if achieved_bits(net(), r).total <= limit]
    assert rivals
    assert total_error(net(), found) < 0.95 * min(rivals)


def test_nothing_is_pruned_where_that_is_worse():
    """Noise has no weights to spare: what pruning takes is more than k-means loses at the same size."""
    recipe = Recipe(rows_per_codeword=0, max_iters=20)
    both = [*OPTIONS["layer"], *dense_candidates()]
    found = allocate(net(), recipe, ratio=12.0, candidates=both)
    assert all(form_of(m) is None for m in prune_(net(), found))
    assert achieved_bits(net(), found).ratio >= 12.0
    pruned = allocate(net(), recipe, ratio=12.0, candidates=OPTIONS["layer"])
    assert total_error(net(), found) < total_error(net(), pruned)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_result_is_plain_data_that_a_run_can_use(scope):
    recipe = Recipe(scope=scope, overrides={"*": {"kmeans": "masked"}, "2": {"treatment": "compress"}})
    found = allocate(net(), recipe, ratio=12.0, candidates=OPTIONS[scope])
    assert Recipe.from_dict(found.to_dict()) == found
    assert dict(found.overrides)["2"][-1] == ("treatment", "compress")
    model = cluster_(prune_(net(), found), found)
    if scope == "network":
        assert len({form_of(m).codebook for m in model[1:]}) == 1


def test_packed_codewords_of_equal_width_are_shared_across_patterns(tmp_path):
    import mvq

    recipe = Recipe(
        scope="network", codewords="packed", n_codewords=32, overrides={"1": {"pattern": "1:2", "d": 8}}
    )  # fmt: skip
    model = cluster_(net(), recipe)
    assert form_of(model[1]).codebook is form_of(model[2]).codebook
    mvq.save(model, tmp_path / "net.mvq")
    other = net()
    mvq.load_into(other, tmp_path / "net.mvq")
    for ours, theirs in zip(model, other, strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_same_call_same_recipe_and_model_unchanged():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    options = OPTIONS["layer"]
    first = allocate(model, Recipe(), ratio=14.0, candidates=options, max_rows=100)
    assert first == allocate(model, Recipe(), ratio=14.0, candidates=options, max_rows=100)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert form_of(model[1]) is None


def test_importance_moves_bits_to_the_layers_that_matter():
    def bits(importance):
        found = allocate(net(), Recipe(), ratio=26.0, candidates=OPTIONS["layer"], importance=importance)
        layer = LayerRecipe(**dict(dict(found.overrides)["3"]))
        return sum(index_and_mask_bits((64, 64, 3, 3), layer, layer.n_codewords))

    ones = {str(i): torch.ones_like(m.weight) for i, m in enumerate(net())}
    assert bits(ones) == bits(None)
    assert bits({**ones, "3": 1e5 * ones["3"]}) > bits(None)


def slow_error(module, option, codebook, h, pruned):
    """Every subvector against every codeword."""
    weight, total = module.weight.detach().numpy(), 0.0
    n_groups = len(weight) // option.d
    for g in range(n_groups):
        for place in np.ndindex(weight.shape[1:]):
            rows = (slice(g * option.d, (g + 1) * option.d), *place)
            w, weights = weight[rows].astype(float), h[rows]
            mask = option.pattern.top_mask(np.abs(w))
            table = codebook.values.astype(float)
            kept = table if option.codewords == "packed" else table[:, mask]
            near = ((w[mask] - kept) ** 2).sum(1).argmin()
            total += (weights[mask] * (w[mask] - kept[near]) ** 2).sum()
            total += pruned * (weights * ~mask * w**2).sum()
    return total


@pytest.mark.parametrize("codewords", ["masked", "packed"])
@pytest.mark.parametrize("weighted", [False, True])
def test_measured_error_is_the_plain_sum(codewords, weighted, rng):
    from mvq.allocate.measure import Metric, cut, error, fit

    module = net()[1]
    h = rng.random(module.weight.shape).astype(np.float32) if weighted else np.ones(module.weight.shape)
    importance = {"1": torch.from_numpy(h)} if weighted else None
    metric = Metric(importance=importance, pruned=0.3, max_rows=100, seed=0)
    option = LayerRecipe(pattern="4:16", d=16, n_codewords=8, codewords=codewords)
    one = cut("1", module, option, metric)
    codebook = fit([one], Recipe(), 8, metric)
    assert codebook is not None
    assert error(one, codebook) == pytest.approx(slow_error(module, option, codebook, h, 0.3), rel=1e-5)


def test_a_pruned_model_keeps_its_patterns():
    model = prune_(net(), Recipe(pattern="8:16"))
    found = allocate(model, Recipe(pattern="8:16"), ratio=9.0, candidates=OPTIONS["layer"])
    assert {str(dict(changes)["pattern"]) for _, changes in found.overrides} == {"8:16"}
    with pytest.raises(ModelError, match="layer '1' was pruned 8:16, which no candidate has"):
        allocate(model, Recipe(pattern="8:16"), ratio=9.0, candidates=OPTIONS["layer"][:2])


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_out_of_reach(scope):
    with pytest.raises(ConfigError, match="bits are out of reach; the smallest choice takes"):
        allocate(net(), Recipe(scope=scope), 2000, candidates=OPTIONS[scope])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"candidates": []}, "candidates is empty"),
        ({"candidates": [LayerRecipe(treatment="int8")]}, "is not a LayerRecipe that compresses"),
        ({"pruned": 1.5}, "pruned=1.5 is not in 0..1"),
        ({"max_rows": 0}, "max_rows=0 is not at least 1"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ConfigError, match=text):
        allocate(net(), Recipe(), ratio=20.0, **options)


def test_a_compressed_model_is_refused():
    with pytest.raises(ModelError, match=r"layer '1' is already compressed; bake_ the model"):
        allocate(cluster_(net(), Recipe(n_codewords=16)), Recipe(), ratio=20.0)


def test_default_candidates_follow_the_recipe():
    found = default_candidates(Recipe(codewords="packed", n_codewords=1))
    assert {o.codewords for o in found} == {"packed"}
    assert {o.n_codewords for o in found} == {1, 2}


def test_fisher_is_the_expected_squared_gradient():
    """For one linear layer: h_ci = E[x_i^2 p_c (1 - p_c)]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4))
    inputs = torch.randn(5, 3)
    found = fisher(model, [inputs] * 600, n_batches=600)["0"]
    p = model(inputs).softmax(1).detach()
    expected = torch.einsum("nc,ni->ci", p * (1 - p), inputs**2) / len(inputs)
    assert torch.allclose(found, expected, rtol=0.3)


def test_fisher_leaves_the_model_alone():
    model = bake_(prune_(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 1)), Recipe()))
    model[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = fisher(model, [(torch.randn(2, 3, 5, 5), None)])
    assert {k: tuple(v.shape) for k, v in found.items()} == {"0": (16, 3, 3, 3), "2": (32, 16, 1, 1)}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert [m.weight.requires_grad for m in (model[0], model[2])] == [False, True]
    assert all(p.grad is None for p in model.parameters())


def test_fisher_tells_what_is_wrong():
    with pytest.raises(DataError, match="the loader yields no input"):
        fisher(nn.Sequential(nn.Linear(3, 4)), [])
    with pytest.raises(ModelError, match=r"the model gives shape \(8,\), not logits"):
        fisher(nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), [torch.randn(2, 3)])
    with pytest.raises(ModelError, match="layer '0' is compressed"):
        fisher(cluster_(net(), Recipe(n_codewords=16)), [torch.randn(2, 3, 9, 9)])


def test_layer_fisher_is_the_mean_over_kept_weights():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    bake_(prune_(model, Recipe(pattern="1:4", d=4, classifier="skip", first_conv="compress")))
    batches = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))]
    each, layer = fisher(model, batches), layer_fisher(model, batches)
    kept = model[0].weight.detach() != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(layer["0"], each["0"][kept].mean().expand(layer["0"].shape))
    torch.testing.assert_close(layer["3"], each["3"].mean().expand(4, 16))


def test_untrained_networks_get_bits_where_outputs_depend_on_them():
    """Two equal layers, of which the second one's outputs hardly count."""
    torch.manual_seed(0)
    kernels = torch.randn(2, 64, 64, 1, 1)

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(64, 64, 1, bias=False) for _ in range(2))
            for layer, kernel in zip((self.a, self.b), kernels, strict=True):
                layer.weight = nn.Parameter(kernel.clone())
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc((self.a(x).tanh() + 0.02 * self.b(x).tanh()).mean((2, 3)))

    recipe = Recipe(first_conv="compress", classifier="skip", n_codewords=64, rows_per_codeword=0)
    model, x = Branches(), torch.randn(24, 64, 3, 3)
    found = allocate_untrained(model, recipe, [(x[:20], None), (x[20:], None)], ratio=12.0, n_images=24)
    assert achieved_bits(model, found).ratio >= 12.0
    layers = {name: dict(changes) for name, changes in found.overrides}

    def error(name):
        form = form_of(cluster_(prune_(Branches(), found), found).get_submodule(name))
        return form.total_sse

    assert layers["a"] != layers["b"]
    assert error("a") < 0.5 * error("b")
    assert found == allocate_untrained(model, recipe, [x], ratio=12.0, n_images=24)
    with pytest.raises(ConfigError, match=r"trust=1.5 is not in 0..1"):
        allocate_untrained(model, recipe, [x], ratio=12.0, trust=1.5)


@pytest.mark.parametrize("scope", ["layer", "network"])
def test_multiplications_are_saved_where_they_cost_least(scope):
    """Layers at the front have more positions, the second one most energy."""
    recipe = Recipe(scope=scope, rows_per_codeword=0, max_iters=20)
    macs = {str(i): n for i, n in enumerate((10**6, 4 * 10**6, 2 * 10**6, 10**6))}
    left = {}
    for share in (None, 0.4, 0.25):
        found = allocate(net(), recipe, ratio=20.0, candidates=OPTIONS[scope], macs=macs, max_macs=share)
        patterns = {name: dict(changes)["pattern"] for name, changes in found.overrides}
        left[share] = sum(macs[name] * p.keep / p.group for name, p in patterns.items()) / (7 * 10**6)
        assert achieved_bits(net(), found).ratio >= 20.0
    assert left[None] > 0.4 >= left[0.4] > 0.25 >= left[0.25]


def test_work_is_counted_and_bounded():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    x = torch.randn(8, 3, 12, 12)
    recipe = Recipe(first_conv="skip", classifier="skip", n_codewords=64, rows_per_codeword=0, max_iters=5)
    names = ("2", "4")

    def share(max_macs):
        found = allocate_untrained(model, recipe, [x], ratio=8.0, max_macs=max_macs)
        layers = {layer.name: layer for layer in count(prune_(copy.deepcopy(model), found), x[:1]).layers}
        return sum(layers[n].executed for n in names) / sum(layers[n].dense for n in names)

    assert share(None) == 1.0
    assert 0.3 < share(0.5) <= 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_macs": 0.0}, "max_macs=0.0 is not above 0 and at most 1"),
        ({"max_macs": 1.5}, "max_macs=1.5 is not above 0 and at most 1"),
        ({"max_macs": 0.5}, r"max_macs needs macs of every layer, which lacks \['1', '2', '3'\]"),
        ({"max_macs": 0.5, "macs": {"1": 5, "2": 5}}, r"which lacks \['3'\]; see mvq.flops.count"),
        ({"max_macs": 0.05, "macs": {"1": 500, "2": 500, "3": 500}}, "75 multiply-accumulates are out of reach"),
    ],
)
def test_wrong_work(options, text):
    with pytest.raises(ConfigError, match=text):
        allocate(net(), Recipe(max_iters=3), ratio=14.0, candidates=OPTIONS["layer"], **options)


@pytest.mark.parametrize(
    "options", [{"ratio": 12.0, "max_macs": 1.5}, {"ratio": -1.0}, {"ratio": 12.0, "target_bits": 1}, {}]
)
def test_untrained_networks_are_not_measured_for_a_budget_that_is_none(options):
    def images():
        raise AssertionError("the images were read")
        yield

    with pytest.raises(ConfigError, match=r"^allocate_untrained: "):
        allocate_untrained(net(), Recipe(), images(), **options)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_without_trust_in_the_information_layers_of_any_scale_count_alike(scale):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(64, 64, 1) for _ in range(2)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight * scale)
    recipe = Recipe(first_conv="compress", n_codewords=64, rows_per_codeword=0)
    found = allocate_untrained(model, recipe, [torch.randn(8, 64, 3, 3)], ratio=12.0, trust=0.0)
    forms = [form_of(cluster_(prune_(copy.deepcopy(model), found), found)[i]) for i in range(2)]
    relative = [form.total_sse / float(model[i].weight.detach().square().sum()) for i, form in enumerate(forms)]
    assert relative[0] == pytest.approx(relative[1], rel=0.5)
