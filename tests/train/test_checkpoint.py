"""Stopped and resumed training ends with the same bits; checkpoints that do not fit are refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mvq import Recipe
from mvq.errors import FileError, ModelError
from mvq.nn import cluster_, prune_
from mvq.train import finetune

RECIPE = Recipe(pattern="2:4", d=4, n_codewords=8)
OPTIONS = {"epochs": 2, "ema": 0.9, "lr": 0.02, "warmup_steps": 3, "weight_decay": 1e-3, "grad_clip": 1.0}


class Stop(Exception):
    """Power off."""


class Noisy(Dataset):
    """40 images with augmentation from every source of random numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(40, 3, 6, 6, generator=generator)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        noise = 0.1 * torch.randn(1) + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.images[i] + noise.float(), i % 3


def net(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    )
    if kind in ("clustered", "soft"):
        return cluster_(model, RECIPE, soft=kind == "soft")
    return prune_(model, RECIPE, method="sr-ste") if kind == "sr-ste" else model


def loader(own_generator: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(9) if own_generator else None
    return DataLoader(Noisy(), batch_size=8, shuffle=True, generator=generator)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@pytest.fixture(autouse=True)
def _keep_random_state() -> Iterator[None]:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def stop_at(step: int):
    def on_step(at: int, loss: float) -> None:
        if at == step:
            raise Stop

    return on_step


@pytest.mark.parametrize(
    ("kind", "own_generator", "optimizer"),
    [("clustered", False, "adamw"), ("sr-ste", True, "sgd"), ("soft", True, "adam")],
)
def test_resumed_at_any_step_the_bits_are_the_same(
    kind: str, own_generator: bool, optimizer: str, tmp_path: Path
) -> None:
    seed_all(1)
    whole = net(kind)
    seed_all(2)
    data, losses = loader(own_generator), {}
    options = {**OPTIONS, "optimizer": optimizer, "learn_assignments": kind == "soft"}
    history = finetune(whole, data, on_step=losses.__setitem__, **options)
    for step in (1, 2, 4, 5, 8):
        path = tmp_path / f"{step}.ckpt"
        first = net(kind)
        seed_all(2)
        with pytest.raises(Stop):
            finetune(
                first,
                loader(own_generator),
                checkpoint=path,
                checkpoint_every=2,
                on_step=stop_at(step),
                **options,
            )
        # At step 1 there is no checkpoint yet and the seed counts; later all state is that of the file
        model = net(kind, seed=0 if step < 2 else 4)
        seed_all(2 if step < 2 else 78)
        again = {}
        resumed = finetune(
            model,
            loader(own_generator),
            checkpoint=path,
            checkpoint_every=2,
            on_step=again.__setitem__,
            **options,
        )
        assert min(again) == {1: 0, 2: 2, 4: 4, 5: 5, 8: 8}[step]
        assert all(losses[s] == loss for s, loss in again.items()), step
        assert resumed == history
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (step, name)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    first, second = net("dense"), net("dense", seed=1)
    history = finetune(first, loader(True), checkpoint=path, ema=0.9, max_steps=7, epochs=3)
    assert [r.n_steps for r in history] == [5, 2]
    assert finetune(second, loader(True), checkpoint=path, ema=0.9, max_steps=7, epochs=3) == history
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    steps = []
    finetune(second, loader(True), checkpoint=path, resume=False, on_step=lambda s, _: steps.append(s))
    assert steps == [0, 1, 2, 3, 4]


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    finetune(net("sr-ste"), loader(True), checkpoint=path)
    other = net("dense")
    other[7] = nn.Linear(10, 4)
    prune_(other, Recipe(pattern="1:4", d=4, n_codewords=8), method="sr-ste", decay=1e-4)
    with pytest.raises(ModelError) as caught:
        finetune(other, loader(True), checkpoint=path, lr=0.5)
    assert str(caught.value) == (
        f"checkpoint {path} is of another training; train as then, or pass resume=False to start over:\n"
        "  option 'lr': 0.001 in the checkpoint, 0.5 now\n"
        "  recipe 'pattern': '2:4' in the checkpoint, '1:4' now\n"
        "  layer '4': NMMask(pattern=2:4, decay=0.0005) in the checkpoint, NMMask(pattern=1:4, decay=0.0001) now\n"
        "  layer '7': NMMask(pattern=2:4, decay=0.0005) in the checkpoint, NMMask(pattern=1:4, decay=0.0001) now\n"
        "  state '7.bias': float32 (3,) in the checkpoint, float32 (4,) now\n"
        "  state '7.parametrizations.weight.original': float32 (3, 10) in the checkpoint, float32 (4, 10) now\n"
        "  state '7.parametrizations.weight.0.mask': bool (3, 10) in the checkpoint, bool (4, 10) now"
    )


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    finetune(net("dense"), loader(True), checkpoint=path)
    data = path.read_bytes()
    remedy = "delete it, or pass resume=False to start over"
    for bad in (data[:-1], data[:-500] + b"x" + data[-499:], data[:20]):
        path.write_bytes(bad)
        with pytest.raises(FileError) as caught:
            finetune(net("dense"), loader(True), checkpoint=path)
        assert str(caught.value) == (
            f"checkpoint {path} is damaged: its {len(bad)} bytes do not match their digest; {remedy}"
        )
    path.write_bytes(b"PK")
    with pytest.raises(FileError) as caught:
        finetune(net("dense"), loader(True), checkpoint=path)
    assert str(caught.value) == f"checkpoint {path} is not a checkpoint of mvq.finetune; {remedy}"
    with pytest.raises(FileError) as caught:
        finetune(net("dense"), loader(True), checkpoint=tmp_path)
    assert str(caught.value) == f"checkpoint {tmp_path} cannot be read: Is a directory"
    with pytest.raises(FileError) as caught:
        finetune(net("dense"), loader(True), checkpoint=path / "b")
    assert str(caught.value) == f"checkpoint {path / 'b'} cannot be written: File exists"


def test_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    model = net("dense")

    def poison(step: int, loss: float) -> None:
        if step == 3:
            with torch.no_grad():
                model[7].weight[0, 0] = torch.nan

    with pytest.raises(ModelError) as caught:
        finetune(model, loader(True), checkpoint=path, checkpoint_every=2, on_step=poison)
    assert str(caught.value) == (
        "finetune: '7.weight' is not finite after 4 steps; lower the learning rate or check the data; "
        f"checkpoint {path} keeps the state after 2 steps"
    )
    with pytest.raises(ModelError) as caught:
        finetune(model, loader(True), checkpoint=path, checkpoint_every=3, on_step=poison)
    assert str(caught.value) == (
        "finetune: step 4 (epoch 0): the loss is nan; lower the learning rate or check the data; "
        f"checkpoint {path} keeps the state after 3 steps"
    )
