"""Assignments that follow latent values: the network stays the stored one, and training may move them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import mvq
from mvq.errors import ConfigError, ModelError, ShapeError
from mvq.nn import (
    Reassign,
    VQWeight,
    cluster_,
    extract,
    harden_,
    install_,
    is_soft,
    reassign_,
    set_assignments_,
    soften_,
)
from mvq.nn.assignments import SPACINGS, spacing
from mvq.nn.layers import form_of
from mvq.recipe import Recipe
from mvq.train import finetune


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 40, 3),
        nn.ReLU(),
        nn.Conv2d(40, 24, 1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def clustered(soft=False, **changes):
    options = {"pattern": "4:16", "d": 16, "n_codewords": 12, "classifier": "skip", "scope": "network", **changes}
    return cluster_(net(), Recipe(**options), soft=soft)


def forms(model):
    return [form for m in model.modules() if isinstance(form := form_of(m), VQWeight)]


def weights(model):
    return {name: m.weight.detach().clone() for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def batches(n=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 5, 5, generator=generator), torch.randint(0, 5, (8,), generator=generator)) for _ in range(n)
    ]


KINDS = [
    {"codewords": "packed"},
    {"codewords": "masked"},
    {"pattern": "1:1", "d": 8},
    {"scope": "layer", "codewords": "packed"},
]


@pytest.mark.parametrize("changes", KINDS)
def test_soft_model_computes_what_the_hard_one_does(changes):
    model = clustered(**changes)
    before, state = weights(model), model.state_dict()
    stored = extract(model)
    soften_(model, weights(net()))
    assert all(torch.equal(before[n], w) for n, w in weights(model).items())
    assert all(
        np.array_equal(a.assignments, b.assignments)
        for a, b in zip(stored.vq_layers, extract(model).vq_layers, strict=True)
    )
    harden_(model)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(before[n], w) for n, w in weights(model).items())


@pytest.mark.parametrize("changes", KINDS)
def test_latent_gradient_is_that_of_the_subvectors(changes):
    """A codeword's gradient is the mean of its members' latent gradients, lane by lane."""
    model = soften_(clustered(**changes))
    for form in forms(model):
        form.latent.unit.fill_(1.0)
    probe = {n: torch.randn_like(w) for n, w in weights(model).items()}
    sum((m.weight * probe[n]).sum() for n, m in model.named_modules() if isinstance(form_of(m), VQWeight)).backward()
    for codebook in {form.codebook for form in forms(model)}:
        sums, counts = np.zeros(codebook.values.shape), np.zeros(codebook.values.shape)
        for form in forms(model):
            if form.codebook is codebook:
                kept = form.kept().numpy()
                gradient = form.latent.values.grad.numpy()
                for j, c in enumerate(form.assignments.tolist()):
                    sums[c] += gradient[j] * kept[j]
                    counts[c] += kept[j]
        inside = codebook.values.grad.numpy() != 0
        assert inside.any()
        assert codebook.values.grad.numpy()[inside] == pytest.approx((sums / np.maximum(counts, 1))[inside], abs=1e-5)


@pytest.mark.parametrize("changes", KINDS)
def test_latent_unit_goes_with_the_distance_to_the_next_codeword(changes):
    model = clustered(**changes)
    expected = []
    for form in forms(model):
        rows = form.codebook().detach().double().numpy()
        nearest = [min(((a - b) ** 2).mean() for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
        expected.append(np.mean([nearest[c] for c in form.assignments]) ** 0.5)
    assert min(expected) > 0
    assert [spacing(form) for form in forms(model)] == pytest.approx(expected, rel=1e-5)
    soften_(model)
    assert [float(form.latent.unit) for form in forms(model)] == pytest.approx([SPACINGS * x for x in expected])


def test_latent_unit_of_a_single_codeword_is_one():
    assert [float(form.latent.unit) for form in forms(soften_(clustered(n_codewords=1)))] == [1.0, 1.0]


def slow_labels(form):
    table, rows, kept = form.codebook().detach().double(), form.latent().detach().double(), form.kept()
    return torch.stack([((row - table) ** 2 * k).sum(1).argmin() for row, k in zip(rows, kept, strict=True)])


@pytest.mark.parametrize("changes", KINDS)
def test_reassigning_takes_the_nearest_codeword_and_counts_members_anew(changes):
    model = soften_(clustered(**changes))
    torch.manual_seed(3)
    for form in forms(model):
        form.latent.values.data.normal_()
    before = [form.assignments.clone() for form in forms(model)]
    share = reassign_(model)
    changed = sum(int((f.assignments != b).sum()) for f, b in zip(forms(model), before, strict=True))
    assert share == changed / sum(len(b) for b in before) > 0.3
    for form in forms(model):
        assert torch.equal(form.assignments.long(), slow_labels(form))
    for codebook in {form.codebook for form in forms(model)}:
        found = codebook.counts.clone()
        codebook.counts.zero_()
        for form in forms(model):
            if form.codebook is codebook:
                form.count_members()
        assert torch.equal(found, codebook.counts)


@pytest.mark.parametrize("changes", KINDS)
def test_targets_at_the_weights_change_nothing_after_clustering(changes):
    """Clustering ends with an assignment of the weights, so they are nearest already."""
    model = soften_(clustered(**changes), weights(net()))
    assert reassign_(model) == 0
    assert reassign_(soften_(clustered(**changes))) == 0


def test_training_moves_assignments_and_saves_what_it_computes(tmp_path):
    model = soften_(clustered(), weights(net()))
    hook = Reassign(model, 40, every=5, until=0.5)
    finetune(model, batches(), epochs=10, lr=1e-2, on_step=hook)
    assert len(hook.changed) == 4
    assert sum(hook.changed) > 0
    compressed = extract(model)
    harden_(model)
    mvq.save(model, tmp_path / "net.mvq")
    other = mvq.load_into(net(), tmp_path / "net.mvq")
    assert all(torch.equal(w, weights(other)[n]) for n, w in weights(model).items())
    assert torch.equal(model(batches()[0][0]), install_(net(), compressed)(batches()[0][0]))


@pytest.mark.parametrize("changes", KINDS)
def test_clustering_keeps_the_weights_as_latent_values(changes):
    expected = forms(soften_(clustered(**changes), weights(net())))
    found = forms(clustered(soft=True, **changes))
    assert all(torch.equal(a.latent(), b.latent()) for a, b in zip(found, expected, strict=True))


def test_finetuning_learns_assignments_and_fixes_them_at_the_end():
    options = {"epochs": 5, "lr": 1e-2}
    by_hand = clustered(soft=True)
    finetune(by_hand, batches(), on_step=Reassign(by_hand, 20), **options)
    harden_(by_hand)
    steps = []
    model = clustered(soft=True)
    finetune(model, batches(), learn_assignments=True, on_step=lambda step, _: steps.append(step), **options)
    assert steps == list(range(20))
    assert not is_soft(model)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True)
    )
    fixed = clustered()
    start = [form.assignments.clone() for form in forms(fixed)]
    finetune(fixed, batches(), **options)
    assert all(torch.equal(form.assignments, a) for form, a in zip(forms(fixed), start, strict=True))
    assert any(not torch.equal(form.assignments, a) for form, a in zip(forms(model), start, strict=True))

    # From a file there are codewords only
    later = clustered()
    finetune(later, batches(), learn_assignments=True, **options)
    assert not is_soft(later)
    assert any(not torch.equal(form.assignments, a) for form, a in zip(forms(later), start, strict=True))


def test_free_assignments_fit_better():
    options = {"epochs": 60, "lr": 5e-3}
    losses = [finetune(clustered(soft=s), batches(), learn_assignments=s, **options)[-1].loss for s in (False, True)]
    assert losses[1] < 0.8 * losses[0]


def test_compress_learns_assignments():
    recipe = Recipe(pattern="4:16", d=16, n_codewords=12, classifier="skip", scope="network")
    start = [form.assignments for form in forms(mvq.compress(net(), recipe))]
    for learns in (False, True):
        model = mvq.compress(net(), recipe, batches(), epochs=5, learn_assignments=learns)
        assert not is_soft(model)
        same = [torch.equal(form.assignments, a) for form, a in zip(forms(model), start, strict=True)]
        assert all(same) != learns
    assert not is_soft(mvq.compress(net(), recipe, learn_assignments=True))


def test_soft_state_goes_through_copies_types_and_state_dicts():
    model = soften_(clustered(), weights(net()))
    torch.manual_seed(4)
    for form in forms(model):
        form.latent.values.data.normal_()
    other = soften_(clustered())
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    assert reassign_(other) == reassign_(twin) == reassign_(model)
    assert all(torch.equal(a.assignments, b.assignments) for a, b in zip(forms(model), forms(other), strict=True))
    assert {form.latent.values.dtype for form in forms(model.half())} == {torch.float32}


def test_set_assignments():
    model = clustered()
    form = forms(model)[0]
    wanted = torch.arange(len(form.assignments)) % 12
    set_assignments_(form, wanted)
    assert torch.equal(form.assignments.long(), wanted)
    assert int(form.codebook.counts.sum()) == sum(int(f.kept().sum()) for f in forms(model))
    with pytest.raises(ShapeError, match=r"layer '2': assignments of shape \(3,\), expected \(432,\), one for each"):
        set_assignments_(form, wanted[:3])
    with pytest.raises(ModelError, match=r"assignments span 0\.\.12, must lie in 0\.\.11"):
        set_assignments_(form, wanted + 1 - (wanted == 0).long())


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: soften_(net()), ModelError, "soften_: model Sequential is not clustered; call cluster_ first"),
        (
            lambda: finetune(net(), batches(), learn_assignments=True),
            ModelError,
            "soften_: model Sequential is not clu",
        ),
        (
            lambda: finetune(clustered(), iter(batches()), learn_assignments=True, schedule=None),
            ConfigError,
            "finetune: learn_assignments needs the number of steps; set max_steps",
        ),
        (lambda: reassign_(clustered()), ModelError, "reassign_: assignments of the model are fixed; call soften_"),
        (lambda: harden_(clustered()), ModelError, "harden_: assignments of the model are fixed"),
        (lambda: soften_(soften_(clustered())), ModelError, "layer '2' is soft already; give targets by"),
        (lambda: soften_(clustered(), {"1": 1}), ModelError, r"targets for \['1'\], which are no layers of the model"),
        (lambda: soften_(clustered(), {"2": torch.ones(2, 2)}), ShapeError, r"target of layer '2' has shape \(2, 2\)"),
        (lambda: Reassign(clustered(), 0, until=2), ConfigError, "n_steps=0 and every=1 must both be at least 1\nRea"),
    ],
)
def test_errors(act, error, text):
    with pytest.raises(error, match=text):
        act()
