"""A tiny study: a module whose callables are its network, data and rivals, and the tables of its file."""

from __future__ import annotations

from typing import Any

SOURCE = '''
import torch
from torch import nn

from mvq.baselines.forms import RivalForm
from mvq.bench import Method
from mvq.nn.layers import attach, plan


def net():
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )


TRAIN_SEEDS = set()
SCORED, MATCHED = [], []


def data(split="val", batch_size=64, seed=0):
    if split == "train":
        TRAIN_SEEDS.add(seed)
    generator = torch.Generator().manual_seed(seed + (1 if split == "val" else 100))
    labels = torch.arange(48) % 4
    images = torch.randn(48, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(batch_size), labels.split(batch_size)))


def map_net():
    return nn.Sequential(*net()[:7], nn.Conv2d(64, 4, 1))


def maps(split="val", batch_size=64, seed=0):
    return [(x, y[:, None, None].expand(-1, 4, 4)) for x, y in data(split, batch_size, seed)]


def once():
    return iter(data())


class OneBit(RivalForm):
    """Sign times the mean magnitude; soft until hardened."""

    def __init__(self, name, recipe):
        super().__init__(name, recipe)
        self.steps, self.hard = [], False

    def forward(self, weight):
        sign = weight.sign() * weight.abs().mean()
        return sign if self.hard else (weight + sign) / 2

    def right_inverse(self, weight):
        return weight

    def stored_bits(self):
        assert self.hard, "counted before it was hardened"
        assert [n for _, n in self.steps] == [len(self.steps)] * len(self.steps)
        return 1000

    def harden_(self):
        self.hard = True


def _one_bit(model, point):
    for name, module, layer in plan(model, point.recipe):
        if layer.treatment == "compress":
            form = OneBit(name, point.recipe)
            form.after_step = lambda step, n, form=form: form.steps.append((step, n))
            attach(module, form)
    assert len(point.calibration) >= 1
    return model


def one_bit():
    return Method(name="one_bit", label="one bit", source="the tests", compress=_one_bit)


def score(outputs, generator):
    SCORED.append(len(outputs))
    return (outputs * torch.randn(outputs.shape, generator=generator)).sum()


def loss(outputs, wanted):
    MATCHED.append(len(outputs))
    return (outputs - wanted).square().mean()


def _fail(model, point):
    raise RuntimeError("no\\nluck")


def failing():
    return Method(name="failing", label="failing", source="the tests", compress=_fail)
'''

#: As a TOML file has it; `ours` stands in as the reference.
STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "train": "tinybench:data",
    "evaluate": {"val": "tinybench:data", "other": "tinybench:data"},
    "networks": {"net": {"model": "tinybench:net"}},
    "recipe": {"scope": "network", "classifier": "int8", "max_iters": 5, "init": "random"},
    "sizes": [{"ratio": 10, "pattern": "1:2", "d": 8}, {"ratio": 16, "pattern": "4:16", "d": 16}],
    "methods": ["D", "A", "tinybench:one_bit"],
    "seeds": [0, 1],
    "budget": {"n_steps": 6, "batch_size": 24, "calibration_images": 24},
    "sparse": {"lr": 1e-3},
    "finetune": {"lr": 1e-3},
    "distillation": {"temperature": 2.0, "weight": 0.5},
    "reference": "D",
    "output": {"rows": "out/rows.csv", "work": "work", "report": "out/results.md", "images": "out/img"},
}
