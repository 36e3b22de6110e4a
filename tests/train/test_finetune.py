"""Fine-tuning."""

import copy

import pytest
import torch
from torch import nn

from mvq import Recipe
from mvq.errors import ConfigError, DataError, ModelError, MvqError
from mvq.nn import LearnedCodebook, cluster_, extract, prune_
from mvq.train import finetune

RECIPE = Recipe(n_codewords=16)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 32, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()


def loader(n: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four classes of blobs in the corners."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(n):
        labels = torch.randint(0, 4, (16,), generator=generator)
        images = 0.3 * torch.randn(16, 1, 10, 10, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, 5 * (label // 2) : 5 * (label // 2) + 5, 5 * (label % 2) : 5 * (label % 2) + 5] += 1
        batches.append((images, labels))
    return batches


def rendered(error: type[MvqError], call) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["dense", "pruned", "clustered"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_loss_falls(kind: str, optimizer: str) -> None:
    model = build()
    if kind != "dense":
        prune_(model, RECIPE)
    if kind == "clustered":
        cluster_(model, RECIPE)
    modes = {m: m.training for m in model.modules()}
    history = finetune(model, loader(), epochs=5, lr=0.05 if optimizer == "sgd" else 1e-2, optimizer=optimizer)
    assert [r.epoch for r in history] == [0, 1, 2, 3, 4]
    assert all(r.n_steps == 6 for r in history)
    assert history[-1].loss < 0.9 * history[0].loss
    assert history[-1].lr < history[0].lr
    assert {m: m.training for m in model.modules()} == modes
    if kind == "clustered":
        extract(model)


def test_only_codebooks_are_trained_on_request() -> None:
    model = cluster_(build(), RECIPE)
    model[7].bias.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    finetune(model, loader(2), lr=1e-2, train_other=False, bn_eval=True)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in model.named_parameters() if ".codebook." in n}
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["7.bias"]


def test_batch_norm_statistics_stay_on_request() -> None:
    model = build()
    before = model[1].running_mean.clone()
    finetune(model, loader(2), bn_eval=True)
    assert torch.equal(model[1].running_mean, before)
    finetune(model, loader(2))
    assert not torch.equal(model[1].running_mean, before)


def test_max_steps_schedule_factory_and_callback() -> None:
    seen: list[tuple[int, float]] = []
    made: list[torch.optim.Optimizer] = []

    def factory(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.5))
        return made[0]

    history = finetune(
        build(),
        iter(loader(6)),
        epochs=9,
        max_steps=4,
        optimizer=factory,
        schedule=None,
        loss_fn=nn.functional.cross_entropy,
        on_step=lambda step, loss: seen.append((step, loss)),
        device="cpu",
    )
    assert [s for s, _ in seen] == [0, 1, 2, 3]
    assert len(history) == 1
    assert history[0].loss == pytest.approx(sum(v for _, v in seen) / 4)
    assert history[0].lr == 0.5


def test_cosine_goes_to_zero_over_all_steps() -> None:
    rates = [r.lr for r in finetune(build(), loader(1), epochs=4, lr=1.0)]
    assert rates == pytest.approx([1.0, 0.853553, 0.5, 0.146447], rel=1e-4)


def test_the_same_run_gives_the_same_codes() -> None:
    models = [cluster_(build(), RECIPE) for _ in range(2)]
    for model in models:
        finetune(model, loader(), epochs=2)
    a, b = (extract(m) for m in models)
    assert all((a.codebooks[k].codes == b.codebooks[k].codes).all() for k in a.codebooks)


def test_nested_batches_are_moved() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def forward(self, batch):
            return self.inner(batch["image"])

    data = [({"image": x, "name": "a"}, [y]) for x, y in loader(2)]
    finetune(Net(), data, loss_fn=lambda out, y: nn.functional.cross_entropy(out, y[0]))


def test_nan_loss_names_the_step_and_restores_modes() -> None:
    model = build()
    data = loader(3)
    data[2][0][:] = torch.nan
    assert rendered(ModelError, lambda: finetune(model, data, epochs=2, bn_eval=True)) == (
        "finetune: the loss is nan at step 2 (epoch 0); lower the learning rate or check the data"
    )
    assert not any(m.training for m in model.modules())


def test_errors_of_options() -> None:
    model = build()
    text = rendered(
        ConfigError, lambda: finetune(model, [], epochs=0, max_steps=0, lr=-1, optimizer="lion", schedule="step")
    )
    assert text == (
        "finetune: epochs=0 is not at least 1\n"
        "finetune: max_steps=0 is not at least 1; leave it out for no limit\n"
        "finetune: lr=-1 is not positive and finite\n"
        "finetune: optimizer='lion' is not one of adam, adamw, sgd, nor a function\n"
        "finetune: schedule='step' is not 'cosine' or None"
    )
    assert rendered(ConfigError, lambda: finetune(model, iter(loader(1)))) == (
        "finetune: schedule='cosine' needs the number of steps; set max_steps or schedule=None"
    )
    assert rendered(ConfigError, lambda: finetune(model, loader(1), train_other=False)) == (
        "finetune: no parameter to train; with train_other=False a model needs codebooks, so call cluster_ first, "
        "and none may be frozen"
    )


def test_errors_of_data() -> None:
    model = build()
    assert rendered(DataError, lambda: finetune(model, [])) == (
        "train_loader yields no batch in epoch 0; give it data, or a list, not a used-up iterator"
    )
    assert rendered(DataError, lambda: finetune(model, iter(loader(1)), epochs=2, schedule=None)) == (
        "train_loader yields no batch in epoch 1; give it data, or a list, not a used-up iterator"
    )
    assert rendered(DataError, lambda: finetune(model, [torch.zeros(1)])) == (
        "train_loader yields a Tensor, expected pairs (inputs, targets); write your own loop for other data"
    )


def test_frozen_codebooks_are_left_alone() -> None:
    model = cluster_(build(), RECIPE)
    for module in model.modules():
        if isinstance(module, LearnedCodebook):
            module.requires_grad_(False)
    before = copy.deepcopy(model)
    finetune(model, loader(2))
    for a, b in zip(extract(model).codebooks.values(), extract(before).codebooks.values(), strict=True):
        assert (a.codes == b.codes).all()
