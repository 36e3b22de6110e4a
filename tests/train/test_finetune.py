"""Fine-tuning."""

import copy

import pytest
import torch
from torch import nn

from mvq import Recipe
from mvq.errors import ConfigError, DataError, ModelError, MvqError
from mvq.nn import LearnedCodebook, cluster_, extract, prune_
from mvq.train import finetune
from mvq.train.config import OPTIMIZERS

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
    losses = iter([1.0, 1.0, float("nan")])
    before: list[torch.Tensor] = []

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        before[:] = [p.detach().clone() for p in model.parameters()]
        return nn.functional.cross_entropy(outputs, targets) * next(losses)

    assert rendered(ModelError, lambda: finetune(model, loader(3), epochs=2, bn_eval=True, loss_fn=loss_fn)) == (
        "finetune: step 2 (epoch 0): the loss is nan; lower the learning rate or check the data; "
        "no checkpoint was kept; give checkpoint a file name"
    )
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_named() -> None:
    model = build()
    weight = model[7].bias
    # sqrt of zero: a finite loss with an infinite gradient
    assert rendered(
        ModelError,
        lambda: finetune(
            model, loader(1), loss_fn=lambda o, y: o.mean() + (weight - weight.detach()).abs().sqrt().sum()
        ),
    ) == (
        "finetune: step 0 (epoch 0): the gradient of '7.bias' is not finite; lower the learning rate or check the "
        "data; no checkpoint was kept; give checkpoint a file name"
    )


def test_divergence_is_told() -> None:
    steps = iter(range(1000))

    def objective(model: nn.Module, batch) -> torch.Tensor:
        out = model(batch[0]).square().mean()
        return out * 0 + (1.0 if next(steps) < 5 else 11.0)

    assert rendered(ModelError, lambda: finetune(nn.Linear(10, 2), loader(1), epochs=200, objective=objective)) == (
        "finetune: step 104 (epoch 104): the loss is 11 and has been above 10 times its running mean of 1 for 100 "
        "steps; lower the learning rate or check the data; no checkpoint was kept; give checkpoint a file name"
    )


def test_errors_of_batches_leave_the_model_as_it_was() -> None:
    model = build()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    (x, y), *_ = loader(1)
    bad = x.clone()
    bad[0, 0, 0, :3] = torch.inf
    assert rendered(DataError, lambda: finetune(model, [(bad, y)])) == (
        "finetune: step 0 (epoch 0): inputs hold 3 NaN or infinite of 1600 values; repair the data"
    )
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert rendered(DataError, lambda: finetune(model, [(x, y + 2)])) == (
        "finetune: step 0 (epoch 0): labels span 2..5, but the model has 4 classes, 0..3; renumber the labels or "
        "give the model another last layer"
    )
    finetune(model, [(x, torch.where(y == 0, -100, y))])
    finetune(model, [(1e38 * torch.ones_like(x), y)], bn_eval=True, objective=lambda m, b: m(b[0] * 0).mean())


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
    text = rendered(
        ConfigError,
        lambda: finetune(
            model,
            [],
            optimizer=torch.optim.SGD,  # type: ignore[arg-type]
            warmup_steps=-1,
            weight_decay=-1,
            codebook_lr=0,
            ema=1,
            grad_clip=0,
            autocast="float16",
            checkpoint_every=0,
        ),
    )
    assert text == (
        "finetune: codebook_lr=0 is not positive and finite\n"
        "finetune: grad_clip=0 is not positive and finite\n"
        "finetune: warmup_steps=-1 is negative\n"
        "finetune: weight_decay=-1 is not at least 0 and finite\n"
        "finetune: ema=1 is not between 0 and 1; near 1 averages over more steps, as 0.999\n"
        "finetune: checkpoint_every=0 is not at least 1\n"
        "finetune: weight_decay and codebook_lr are for optimizers given by name; set them in your function\n"
        "finetune: autocast='float16' is not 'bfloat16' or None\n"
        "finetune: checkpoint_every=0 without checkpoint; name the file"
    )
    assert rendered(ConfigError, lambda: finetune(model, loader(2), warmup_steps=2)) == (
        "finetune: warmup_steps=2 leaves none of the 2 steps of training"
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
        "finetune: step 0 (epoch 0): train_loader yields a Tensor, expected pairs (inputs, targets); give an "
        "objective for other data"
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


def test_warm_up_then_cosine() -> None:
    rates = [r.lr for r in finetune(build(), loader(1), epochs=6, lr=1.0, warmup_steps=3)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.25])
    rates = [r.lr for r in finetune(build(), loader(1), epochs=3, lr=1.0, warmup_steps=1, schedule=None)]
    assert rates == pytest.approx([0.5, 1.0, 1.0])


def test_decay_and_codebook_rate_go_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict] = []
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda gs: groups.extend(gs) or torch.optim.SGD(gs))
    model = cluster_(build(), RECIPE)
    finetune(model, loader(1), optimizer="sgd", lr=0.1, weight_decay=0.01, codebook_lr=3.0)
    found = {name: g for g in groups for p in g["params"] for name, q in model.named_parameters() if q is p}
    assert len(found) == len(list(model.parameters()))
    for name, group in found.items():
        # The first convolution is int8 over a dense weight; all others are codebooks
        assert group["weight_decay"] == (0.01 if name == "0.parametrizations.weight.original" else 0), name
        assert group["lr"] == pytest.approx(0.3 if ".codebook." in name else 0.1), name


@pytest.mark.parametrize("option", [{"grad_clip": 1e-3}, {"autocast": "bfloat16"}])
def test_clipping_and_autocast(option: dict) -> None:
    model = build()
    seen = []
    finetune(
        model,
        loader(2),
        optimizer="sgd",
        on_step=lambda step, loss: seen.append(sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5),
        loss_fn=lambda out, y: seen.append(out.dtype) or nn.functional.cross_entropy(out.float(), y),
        **option,
    )
    assert seen[0] == (torch.bfloat16 if "autocast" in option else torch.float32)
    assert "autocast" in option or seen[1::2] == pytest.approx([1e-3] * 2, rel=1e-3)


def test_the_model_ends_with_the_average() -> None:
    """Against the average kept by hand."""
    model = build()
    live = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    average = {k: v.clone() for k, v in live.items()}

    def on_step(step: int, loss: float) -> None:
        decay = min(0.4, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            if name in average:
                average[name] = decay * average[name] + (1 - decay) * value

    finetune(model, loader(6), ema=0.4, lr=0.01, on_step=on_step)
    for name, value in average.items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name


def test_denormals_are_flushed_meanwhile() -> None:
    def flushed() -> bool:
        return float(torch.full((1,), 1e-40) * 1.0) == 0

    seen: list[bool] = []
    finetune(build(), loader(1), on_step=lambda *_: seen.append(flushed()))
    assert (seen, flushed()) == ([True], False)


def test_bar_shows_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    finetune(build(), loader(2), progress=True, objective=lambda m, b: m(b[0]).mean() * 0 + 0.125)
    assert "epoch 1/1" in screen.getvalue()
    assert "loss 0.1250" in screen.getvalue()
