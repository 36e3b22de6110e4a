"""prune_, cluster_, bake_ and extract/install_ on small real networks."""

import copy
import itertools

import numpy as np
import pytest
import torch
from small_nets import SmallNet, batch, small_net
from torch import nn

from mvq import Recipe
from mvq.compressed import CompressedModel, DenseLayer, Int8Layer, VQLayer
from mvq.errors import ConfigError, FewDistinctError, ModelError, MvqError, ShapeError, WeightError
from mvq.nn import (
    Int8Weight,
    NMMask,
    VQWeight,
    bake_,
    cluster_,
    eligible_layers,
    extract,
    install_,
    prune_,
)
from mvq.nn.layers import form_of

RECIPE = Recipe(n_codewords=16)
RECIPES = {
    "masked": RECIPE,
    "packed": Recipe(n_codewords=16, codewords="packed"),
    "1:2": Recipe(n_codewords=16, pattern="1:2", d=8),
    "plain": Recipe(n_codewords=16, kmeans="plain"),
    "dense": Recipe(n_codewords=16, pattern="1:1", d=8, kmeans="plain"),
    "network": Recipe(n_codewords=16, scope="network"),
    "network-packed": Recipe(n_codewords=16, scope="network", codewords="packed"),
    "all": Recipe(n_codewords=16, first_conv="compress", depthwise="compress"),
    "skips": Recipe(n_codewords=16, first_conv="skip", overrides={"layer2.*": {"treatment": "skip"}}),
}


def equal(a: CompressedModel, b: CompressedModel) -> None:
    assert a.recipe == b.recipe
    assert list(a.codebooks) == list(b.codebooks)
    for key, codebook in a.codebooks.items():
        assert np.array_equal(codebook.codes, b.codebooks[key].codes)
        assert codebook.scale == b.codebooks[key].scale
    assert list(a.tensors) == list(b.tensors)
    for key, tensor in a.tensors.items():
        assert tensor.dtype == b.tensors[key].dtype
        assert np.array_equal(tensor, b.tensors[key]), key
    assert len(a.layers) == len(b.layers)
    for x, y in zip(a.layers, b.layers, strict=True):
        assert type(x) is type(y)
        for field in vars(x):
            assert np.array_equal(getattr(x, field), getattr(y, field)), (x.name, field)


def rendered(error: type[MvqError], call) -> str:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return str(caught.value)


def test_eligible_layers_and_roles() -> None:
    assert [(name, role) for name, _, role in eligible_layers(small_net())] == [
        ("stem", "first_conv"),
        ("layer1.conv1", "conv"),
        ("layer1.conv2", "conv"),
        ("layer1.down", "conv"),
        ("layer2.conv1", "conv"),
        ("layer2.conv2", "conv"),
        ("layer2.down", "conv"),
        ("dw", "depthwise"),
        ("hidden", "linear"),
        ("fc", "classifier"),
    ]


def test_a_shared_module_counts_once() -> None:
    shared = nn.Linear(4, 4)
    assert [n for n, _, _ in eligible_layers(nn.Sequential(shared, nn.ReLU(), shared))] == ["0"]


def test_prune_keeps_the_largest_and_leaves_the_dense_weight_underneath() -> None:
    model = small_net()
    before = {name: m.weight.detach().clone() for name, m, _ in eligible_layers(model)}
    assert prune_(model, RECIPE) is model
    for name, module, role in eligible_layers(model):
        assert type(module).__mro__[1] in (nn.Conv2d, nn.Linear) or form_of(module) is None
        if role in ("first_conv", "depthwise"):
            assert form_of(module) is None
            continue
        form = form_of(module)
        assert isinstance(form, NMMask)
        assert torch.equal(module.parametrizations.weight.original, before[name])
        assert torch.equal(module.weight, before[name] * form.mask)
        n_out = len(form.mask)
        for start in range(0, n_out, 16):
            block, source = form.mask[start : start + 16].flatten(1), before[name][start : start + 16].flatten(1).abs()
            assert (block.sum(0) == min(4, len(block))).all()
            smallest_kept = torch.where(block, source, torch.inf).amin(0)
            assert (torch.where(block, 0.0, source).amax(0) <= smallest_kept).all()
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    original = model.hidden.parametrizations.weight.original
    assert (original.grad[~model.hidden.parametrizations.weight[0].mask] == 0).all()
    assert original.grad.abs().sum() > 0


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("pruned", [False, True])
def test_cluster_extract_install_round_trip(name: str, pruned: bool) -> None:
    recipe = RECIPES[name]
    model = small_net().eval()
    original = {n: m.weight.detach().clone().numpy() for n, m, _ in eligible_layers(model)}
    if pruned:
        prune_(model, recipe)
    assert cluster_(model, recipe) is model
    assert not any("original" in n and "stem" not in n and "dw" not in n for n, _ in model.named_parameters())
    compressed = extract(model)
    for layer in compressed.layers:
        module = model.get_submodule(layer.name)
        assert np.array_equal(compressed.dense_weight(layer), module.weight.detach().numpy()), layer.name
        if isinstance(layer, VQLayer):
            error = (compressed.dense_weight(layer) - original[layer.name]).astype(np.float64) ** 2
            assert layer.total_sse == pytest.approx(error.sum(), rel=1e-6)
            assert 0 < layer.masked_sse <= layer.total_sse
    for dense in (False, True):
        fresh = install_(small_net(1), compressed, dense=dense).eval()
        x, _ = batch()
        assert torch.equal(fresh(x), model(x))
        assert [n for n, _ in fresh.named_buffers() if "num_batches" in n]
        if not dense:
            equal(extract(fresh), compressed)
        else:
            assert list(fresh.state_dict()) == list(small_net().state_dict())


def test_pruning_first_or_not_gives_the_same_result() -> None:
    equal(extract(cluster_(prune_(small_net(), RECIPE), RECIPE)), extract(cluster_(small_net(), RECIPE)))


@pytest.mark.parametrize("name", ["masked", "packed", "network"])
def test_the_same_seed_gives_the_same_result_and_another_does_not(name: str) -> None:
    from dataclasses import replace

    recipe = RECIPES[name]
    first = extract(cluster_(small_net(), recipe))
    equal(first, extract(cluster_(small_net(), recipe)))
    other = extract(cluster_(small_net(), replace(recipe, seed=1)))
    assert not all(np.array_equal(a.codes, other.codebooks[k].codes) for k, a in first.codebooks.items())


def test_assignments_are_nearest_in_the_stored_codebook() -> None:
    from mvq.cluster.reference import distances
    from mvq.grouping import to_subvectors

    model = small_net()
    original = {n: m.weight.detach().numpy().copy() for n, m, _ in eligible_layers(model)}
    compressed = extract(cluster_(model, RECIPE))
    for layer in compressed.vq_layers:
        rows, mask = to_subvectors(original[layer.name], layer.d), layer.mask()
        table = distances(rows, mask, compressed.codebooks[layer.codebook].values)
        mine = table[np.arange(len(table)), layer.assignments]
        assert mine == pytest.approx(table.min(1), rel=1e-5, abs=1e-9)
        assert layer.masked_sse == pytest.approx(mine.sum(), rel=1e-5)


def test_rows_per_codeword_shrinks_small_layers() -> None:
    model = cluster_(small_net(), Recipe(n_codewords=512))
    sizes = {layer.name: layer.n_codewords for layer in extract(model).vq_layers}
    # hidden: 2 groups x 40 inputs = 80 subvectors, 80 / 4 = 20 -> 16; layer1.down: 2 x 16 = 32 -> 8
    assert sizes["hidden"] == 16
    assert sizes["layer1.down"] == 8
    assert sizes["layer1.conv1"] == 64


def test_a_layer_of_few_distinct_subvectors_gets_a_smaller_codebook() -> None:
    model = small_net()
    with torch.no_grad():
        model.hidden.weight.copy_(model.hidden.weight[:, :1].expand(-1, 40))
        model.layer1.down.weight.zero_()
    layers = {layer.name: layer for layer in extract(cluster_(model, RECIPE)).vq_layers}
    assert layers["hidden"].n_codewords == 2
    assert layers["layer1.down"].n_codewords == 1
    assert layers["layer1.down"].masked_sse == 0


def test_few_output_channels_than_kept_lanes() -> None:
    for codewords in ("masked", "packed"):
        model = nn.Sequential(nn.Linear(64, 2))
        recipe = Recipe(n_codewords=4, codewords=codewords)
        compressed = extract(cluster_(model, recipe))
        assert compressed.vq_layers[0].mask()[:, :2].all()
        equal(extract(install_(nn.Sequential(nn.Linear(64, 2)), compressed)), compressed)


def test_scope_network_shares_one_trained_codebook() -> None:
    model = cluster_(small_net(), RECIPES["network"])
    forms = [m for m in model.modules() if isinstance(m, VQWeight)]
    assert len({id(f.codebook) for f in forms}) == 1
    codebook = forms[0].codebook
    kept = sum(int(layer.mask().sum()) for layer in extract(model).vq_layers)
    assert int(codebook.counts.sum()) == kept
    # The gradient is the average over the members of all layers.
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = torch.zeros_like(codebook.values)
    dense = copy.deepcopy(model)
    bake_(dense)
    nn.functional.cross_entropy(dense(x), y).backward()
    from mvq.grouping import to_subvectors

    for layer in extract(model).vq_layers:
        grad = to_subvectors(dense.get_submodule(layer.name).weight.grad, layer.d) * torch.tensor(layer.mask())
        expected.index_add_(0, torch.tensor(layer.assignments.astype(np.int64)), grad)
    expected /= codebook.counts.clamp_min(1)
    ratio = codebook.values.detach() / codebook.scale().detach()
    expected[(ratio > 127) | (ratio < -128)] = 0  # clipped values do not move (LSQ)
    torch.testing.assert_close(codebook.values.grad, expected)


def test_network_scope_makes_one_codebook_for_each_kind() -> None:
    recipe = Recipe(n_codewords=16, scope="network", overrides={"layer2.*": {"codewords": "packed"}})
    compressed = extract(cluster_(small_net(), recipe))
    assert {k: c.codes.shape for k, c in compressed.codebooks.items()} == {"network.0": (16, 16), "network.1": (16, 4)}


def test_importance_lowers_the_weighted_error() -> None:
    torch.manual_seed(3)
    model = small_net()
    importance = {n: torch.rand_like(m.weight) ** 4 for n, m, _ in eligible_layers(model)}
    original = {n: m.weight.detach().clone() for n, m, _ in eligible_layers(model)}

    def weighted(net: nn.Module) -> float:
        kept = {layer.name: layer for layer in extract(net).vq_layers}
        total = 0.0
        for name in kept:
            weight = net.get_submodule(name).weight.detach()
            error = (weight - original[name]) ** 2 * (weight != 0)
            total += float((error * importance[name]).sum())
        return total

    plain, aware = cluster_(copy.deepcopy(model), RECIPE), cluster_(model, RECIPE, importance=importance)
    assert weighted(aware) < 0.9 * weighted(plain)
    equal(extract(aware), extract(cluster_(small_net(), RECIPE, importance=importance)))


def test_case_c_fits_pruned_lanes_as_zeros() -> None:
    plain = extract(cluster_(small_net(), RECIPES["plain"]))
    masked = extract(cluster_(small_net(), RECIPES["masked"]))
    for a, b in zip(plain.vq_layers, masked.vq_layers, strict=True):
        assert np.array_equal(a.mask_ids, b.mask_ids)
    assert sum(x.masked_sse for x in plain.vq_layers) > 1.5 * sum(x.masked_sse for x in masked.vq_layers)


def test_int8_layers_are_within_half_a_step() -> None:
    model = small_net()
    weight = model.stem.weight.detach().clone()
    with torch.no_grad():
        model.dw.weight[3] = 0
    layers = {layer.name: layer for layer in extract(cluster_(model, RECIPE)).layers}
    stem, dw = layers["stem"], layers["dw"]
    assert isinstance(stem, Int8Layer)
    assert isinstance(dw, Int8Layer)
    step = torch.tensor(stem.scales)[:, None, None, None]
    assert ((torch.tensor(stem.dense()) - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    assert np.abs(stem.codes).reshape(16, -1).max(1).tolist() == [127] * 16
    assert dw.scales[3] == 1


def test_bake_gives_plain_parameters_in_the_old_order() -> None:
    model = cluster_(small_net(), RECIPE).eval()
    x, _ = batch()
    before = model(x)
    assert bake_(model) is model
    assert torch.equal(model(x), before)
    assert type(model.hidden) is nn.Linear
    assert list(model.state_dict()) == list(small_net().state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in small_net().named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    bake_(prune_(model, RECIPE))
    assert torch.equal(model(x), before)


def test_a_deep_copy_is_independent() -> None:
    model = cluster_(small_net(), RECIPES["network"]).eval()
    x, _ = batch()
    before = model(x)
    twin = copy.deepcopy(model)
    assert len({id(m.codebook) for m in twin.modules() if isinstance(m, VQWeight)}) == 1
    with torch.no_grad():
        next(m for m in twin.modules() if isinstance(m, VQWeight)).codebook.values.zero_()
    assert torch.equal(model(x), before)
    bake_(twin)
    assert torch.equal(model(x), before)
    equal(extract(copy.deepcopy(model)), extract(model))


def test_module_classes_are_kept() -> None:
    class MyConv(nn.Conv2d):
        pass

    model = nn.Sequential(MyConv(16, 16, 1), nn.Conv2d(16, 32, 1))
    cluster_(model, Recipe(n_codewords=4, first_conv="compress"))
    assert isinstance(model[0], MyConv)
    bake_(model)
    assert type(model[0]) is MyConv


def test_bias_parametrized_by_others_survives() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    model = nn.Sequential(nn.Linear(16, 16))
    nn.utils.parametrize.register_parametrization(model[0], "bias", Twice())
    twin = copy.deepcopy(model)
    bias = model[0].bias.detach().clone()
    cluster_(model, RECIPE)
    assert torch.equal(model[0].bias, bias)
    bake_(model)
    assert torch.equal(model[0].bias, bias)
    assert torch.equal(twin[0].bias, bias)
    assert "weight" in dict(model[0].named_parameters())


def test_tensors_take_the_other_dtype() -> None:
    compressed = extract(cluster_(small_net(), Recipe(n_codewords=16, other_dtype="float16", first_conv="skip")))
    assert isinstance(compressed.layers[0], DenseLayer)
    assert compressed.tensors["stem.weight"].dtype == np.float16
    assert compressed.tensors["layer1.bn1.running_var"].dtype == np.float16
    assert compressed.tensors["layer1.bn1.num_batches_tracked"].dtype == np.int64
    install_(small_net(), compressed)


def test_provenance_goes_along() -> None:
    assert extract(cluster_(small_net(), RECIPE), provenance={"model": "x"}).provenance == {"model": "x"}


# -----------------------------------------------------------------------------------------------------------------
# errors


def test_errors_of_models_that_do_not_qualify() -> None:
    assert rendered(ModelError, lambda: prune_(nn.Sequential(nn.ReLU()), RECIPE)) == (
        "model Sequential without eligible layers: it has no nn.Conv2d and no nn.Linear; give the model that holds them"
    )
    skip = Recipe(first_conv="skip", classifier="skip", depthwise="skip", overrides={"*": {"treatment": "skip"}})
    for step in (prune_, cluster_):
        assert rendered(ModelError, lambda step=step: step(small_net(), skip)) == (
            "recipe skips all 10 layers of the model; leave at least one to compress"
        )
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
    assert rendered(ModelError, lambda: cluster_(lazy, RECIPE)) == (
        "layer '1': its weight has no shape yet; run the model once before compressing"
    )
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(4, 4))
    assert rendered(ModelError, lambda: cluster_(meta, RECIPE)) == (
        "layer '0': its weight is on the meta device and has no values; load weights first"
    )
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    text = (
        "layer '0': its weight is computed (weight_norm, pruning or another parametrization) and cannot be replaced; "
        "make it a plain parameter first"
    )
    assert rendered(ModelError, lambda: cluster_(normed, RECIPE)) == text
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    for step in (prune_, cluster_):
        assert rendered(ModelError, lambda step=step: step(tied, RECIPE)) == (
            "layer '0': its weight is tied to '1.weight', and a compressed weight cannot be shared; untie it or set "
            "the treatment of the layers to 'skip'"
        )
    integer = nn.Sequential(nn.Linear(4, 4))
    integer[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert rendered(ModelError, lambda: cluster_(integer, RECIPE)) == (
        "layer '0': weight of type torch.int8; only floating-point weights are compressed"
    )


def test_tied_weights_that_are_skipped_stay_tied() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
        model[1].weight = model[0].weight
        return model

    skip = Recipe(n_codewords=4, overrides={"[01]": {"treatment": "skip"}})
    model = cluster_(build(), skip)
    fresh = install_(build(), extract(model))
    assert fresh[0].weight is fresh[1].weight
    assert torch.equal(fresh[0].weight, model[0].weight)
    untied = extract(cluster_(nn.Sequential(*(nn.Linear(16, n) for n in (16, 16, 4))), Recipe(n_codewords=4)))
    with pytest.raises(ModelError, match=r"layer '0': its weight is tied to '1\.weight'"):
        install_(build(), untied)


@pytest.mark.parametrize("step", [prune_, cluster_])
def test_errors_of_weights_that_are_not_finite(step) -> None:
    model = small_net()
    with torch.no_grad():
        model.layer1.conv1.weight[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    assert rendered(WeightError, lambda: step(model, RECIPE)) == (
        "layer 'layer1.conv1': 2 of 4608 weights are NaN or infinite; repair or retrain the model first"
    )
    assert not any(isinstance(m, (NMMask, VQWeight, Int8Weight)) for m in model.modules())


def test_errors_of_steps_in_the_wrong_order() -> None:
    pruned, clustered = prune_(small_net(), RECIPE), cluster_(small_net(), RECIPE)
    name = "'layer1.conv1'"
    assert rendered(ModelError, lambda: prune_(pruned, RECIPE)) == (
        f"prune_: layer {name} is already pruned; bake_ the model to start again"
    )
    assert rendered(ModelError, lambda: prune_(clustered, RECIPE)) == (
        "prune_: layer 'stem' is already compressed; bake_ the model to start again"
    )
    assert rendered(ModelError, lambda: cluster_(clustered, RECIPE)) == (
        "cluster_: layer 'stem' is already compressed; bake_ the model to start again"
    )
    assert rendered(ModelError, lambda: cluster_(pruned, RECIPES["1:2"])) == (
        f"cluster_: layer {name} was pruned 4:16, the recipe says 1:2; use the same pattern, or bake_ the model first"
    )
    assert rendered(ModelError, lambda: bake_(small_net())) == (
        "bake_: model SmallNet has no pruned or compressed weight; call prune_ or cluster_ first"
    )
    assert rendered(ModelError, lambda: extract(small_net())) == (
        "model SmallNet has no compressed weight to read off; call cluster_ first"
    )
    assert rendered(ModelError, lambda: extract(pruned)) == (
        "model SmallNet has no compressed weight to read off; call cluster_ first"
    )
    half_way = nn.ModuleList([pruned, cluster_(nn.Sequential(nn.Linear(16, 16)), RECIPE)])
    assert rendered(ModelError, lambda: extract(half_way)) == (
        "layer '0.layer1.conv1' is pruned but not clustered; call cluster_ before reading the model off"
    )


def test_a_computed_weight_of_others_cannot_be_read_off() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    model = nn.Sequential(nn.Linear(16, 16), normed)
    cluster_(model, Recipe(n_codewords=4, classifier="skip"))
    assert rendered(ModelError, lambda: extract(model)) == (
        "layer '1': its weight is computed (weight_norm, pruning or another parametrization) and has no place in a "
        "compressed model; make it a plain parameter first"
    )


def test_assigning_a_computed_weight_is_an_error() -> None:
    model = cluster_(small_net(), RECIPE)

    def assign() -> None:
        model.hidden.weight = torch.zeros(24, 40)

    assert rendered(ModelError, assign) == (
        "layer 'hidden': its weight is computed from a codebook and cannot be assigned; bake_ the model first, or "
        "change the codewords"
    )


def test_errors_of_importance() -> None:
    model = small_net()
    ones = {n: torch.ones_like(m.weight) for n, m, _ in eligible_layers(model)}
    names = [n for n in ones if n not in ("stem", "dw")]
    assert rendered(ModelError, lambda: cluster_(model, RECIPE, importance={"nope": ones["fc"]})) == (
        f"importance: unknown layers ['nope'], missing layers {names}; "
        f"give one entry for each layer that the recipe compresses"
    )
    assert rendered(ShapeError, lambda: cluster_(model, RECIPE, importance={**ones, "fc": torch.ones(10)})) == (
        "importance of layer 'fc' has shape (10,), its weight (10, 24); they must be equal"
    )
    bad = {**ones, "fc": torch.full((10, 24), -1.0)}
    assert rendered(WeightError, lambda: cluster_(model, RECIPE, importance=bad)) == (
        "importance of layer 'fc': 240 of 240 values are negative, NaN or infinite"
    )


def test_errors_of_the_clustering_name_the_layer() -> None:
    big = Recipe(n_codewords=512, rows_per_codeword=0)
    assert rendered(FewDistinctError, lambda: cluster_(small_net(), big)) == (
        "layer 'layer1.conv1': masked_kmeans: 512 codewords for 288 subvectors of which 288 are distinct; "
        "use at most 288 codewords"
    )
    shared = Recipe(n_codewords=65536, scope="network")
    assert rendered(FewDistinctError, lambda: cluster_(small_net(), shared)).startswith(
        "codebook 'network.0' of 8 layers: masked_kmeans: 65536 codewords for "
    )


def test_recipes_come_as_names_and_dictionaries() -> None:
    prune_(small_net(), "mvq-22x")
    prune_(small_net(), {"preset": "mvq-22x", "n_codewords": 16})
    assert rendered(ConfigError, lambda: prune_(small_net(), 3)) == (
        "recipe of type int: expected a Recipe, a preset name or a dictionary"
    )


def test_state_that_cannot_be_stored() -> None:
    model = cluster_(small_net(), Recipe(n_codewords=16, other_dtype="float16"))
    with torch.no_grad():
        model.layer1.bn1.running_var[:2] = 1e6
    assert rendered(ModelError, lambda: extract(model)) == (
        "tensor 'layer1.bn1.running_var': 2 of 32 values do not fit float16; set other_dtype='float32' in the recipe"
    )

    class Odd(nn.Linear):
        def get_extra_state(self) -> str:
            return "x"

        def set_extra_state(self, state: str) -> None: ...

    odd = cluster_(nn.Sequential(Odd(16, 16)), RECIPE)
    assert rendered(ModelError, lambda: extract(odd)) == (
        "state '0._extra_state' is a str, only tensors can be stored; drop its extra state"
    )


def test_a_model_that_does_not_fit_is_told_all_at_once_and_left_alone() -> None:
    class Other(SmallNet):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(40, 25)
            self.fc = nn.Identity()
            self.fc2 = nn.Linear(25, 10)

    compressed = extract(cluster_(small_net(), RECIPE))
    other = Other()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    assert rendered(ModelError, lambda: install_(other, compressed)) == (
        "the compressed network does not fit the model:\n"
        "  layer 'fc2' is missing from the file\n"
        "  layer 'fc' is not in the model\n"
        "  tensor 'fc2.bias' is missing from the file\n"
        "  tensor 'fc.bias' is not in the model\n"
        "  layer 'hidden' is linear (24, 40) in the file, linear (25, 40) in the model\n"
        "  tensor 'hidden.bias' is (24,) in the file, (25,) in the model"
    )
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with torch.device("meta"):
        meta = SmallNet()
    with pytest.raises(ModelError, match="layer 'stem' is on the meta device; move the model with to_empty first"):
        install_(meta, compressed)
    normed = small_net()
    nn.utils.parametrizations.weight_norm(normed.fc)
    with pytest.raises(ModelError, match="layer 'fc' has a computed weight"):
        install_(normed, compressed)


def test_installing_over_pruned_and_clustered_models() -> None:
    compressed = extract(cluster_(small_net(), RECIPE))
    starts = [prune_(small_net(1), RECIPE), cluster_(small_net(1), RECIPES["packed"]), small_net(1)]
    for start, dense in itertools.product(starts, (False, True)):
        model = install_(copy.deepcopy(start), compressed, dense=dense).eval()
        x, _ = batch()
        assert torch.equal(model(x), install_(small_net(), compressed).eval()(x))


def test_a_subnormal_codebook_scale_is_refused_unless_decoded() -> None:
    from dataclasses import replace

    from mvq.compressed import Codebook

    compressed = extract(cluster_(small_net(), RECIPE))
    tiny = Codebook(codes=compressed.codebooks["fc"].codes, scale=1e-40)
    compressed = replace(compressed, codebooks={**compressed.codebooks, "fc": tiny})
    with pytest.raises(ModelError) as caught:
        install_(small_net(), compressed)
    assert str(caught.value) == (
        f"codebook 'fc': scale {tiny.scale} is below the smallest normal float32 and cannot be trained; "
        f"decode it with dense=True"
    )
    install_(small_net(), compressed, dense=True)


def test_equal_weights_on_different_lanes_are_one_packed_row() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3))
    with torch.no_grad():
        lanes = torch.rand(16, 16, 3, 3, generator=torch.Generator().manual_seed(0)).argsort(0)
        net[1].weight.copy_((lanes < 4).float())
    cluster_(net, Recipe(n_codewords=16, codewords="packed"))
    (layer,) = extract(net).vq_layers
    assert layer.n_codewords == 1
    assert layer.masked_sse < 1e-9
