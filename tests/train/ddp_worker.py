"""One process of a training on several, as `torchrun` starts it; also imported for the one-process reference."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from mvq import Recipe
from mvq.nn import cluster_
from mvq.train import finetune, sparse_train

RECIPE = Recipe(pattern="2:4", d=4, n_codewords=8)


class Unused(nn.Sequential):
    """Has a parameter that no output depends on."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.register_parameter("spare", nn.Parameter(torch.ones(3, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Unused(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, bias=False),
        nn.BatchNorm2d(10, affine=False, momentum=None),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )


def data(sizes: tuple[int, ...] = (8, 7, 5, 6)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    batches = []
    for n in sizes:
        labels = torch.randint(3, (n,), generator=generator)
        images = torch.randn(n, 3, 6, 6, generator=generator) + labels.reshape(-1, 1, 1, 1)
        batches.append((images, labels))
    return batches


def run(kind: str, folder: Path | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final state; odd ranks start from other weights, which must not matter."""
    losses: list[float] = []
    options = {"epochs": 3, "on_step": lambda _, loss: losses.append(loss), "schedule": None}
    model = net()
    if kind == "clustered":
        cluster_(model, RECIPE)
        finetune(model, data(), lr=5e-3, ema=0.9, grad_clip=1.0, checkpoint=folder and folder / "a.ckpt", **options)
    elif kind == "soft":
        cluster_(model, RECIPE, soft=True)
        finetune(model, data(), lr=0.1, optimizer="sgd", learn_assignments=True, **options)
    elif kind == "sr-ste":
        sparse_train(model, RECIPE, data(), lr=0.05, decay=0.01, **options)
    else:
        # One sample in the third batch of the frozen one: one of two processes gets none of it
        loader = torch.utils.data.DataLoader(Rows(9 if kind == "frozen" else 11), batch_size=4, shuffle=True)
        finetune(model, loader, lr=0.05, optimizer="sgd", weight_decay=0.1, bn_eval=kind == "frozen", **options)
    return losses, model.state_dict()


class Rows(torch.utils.data.Dataset):
    def __init__(self, n: int) -> None:
        ((self.images, self.labels),) = data((n,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[i], self.labels[i]


KINDS = ("clustered", "soft", "sr-ste", "shuffled", "frozen")


def main(folder: Path) -> None:
    import os

    rank = int(os.environ["RANK"])
    results = {}
    for kind in KINDS:
        # The order of process 0 counts
        torch.manual_seed(100 + rank)
        results[kind] = run_seeded(kind, rank, folder)
    torch.save(results, folder / f"rank{rank}.pt")


def run_seeded(kind: str, rank: int, folder: Path | None) -> tuple[list[float], dict[str, torch.Tensor]]:
    plain_net = globals()["net"]

    def seeded() -> nn.Module:
        model = plain_net()
        torch.manual_seed(100 + rank)
        if rank:
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.5)
        return model

    globals()["net"] = seeded
    try:
        return run(kind, folder)
    finally:
        globals()["net"] = plain_net


if __name__ == "__main__":
    main(Path(sys.argv[1]))
