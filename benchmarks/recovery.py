"""How much of the accuracy that one-shot compression loses comes back from 1000 unlabelled images?

    MVQ_DATA=FOLDER uv run python -m benchmarks.recovery [--networks NAME ...] [--recipes 8x 12x 16x] [--limit N]

Case D is pruning and masked clustering, `packed` the same with twice the (half as large) codewords; both are recovered
with the parts of `mvq.recover` switched on one after the other. Cases A (dense, common k-means) and B (pruned, common
k-means, dense decode) of equal size get those of the parts that ask nothing of the method: batch norm and
reconstruction. Top-1 is against labels, agreement against the dense network's own predictions. Calibration images come
from the training side and their labels are never read.

Rows go to a CSV file as they are ready. A row already there with the same configuration is kept, unless `--force` is
given.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mvq
from benchmarks.networks import REGISTRY, Adapter
from benchmarks.real_networks import SPECIAL, expected_ratio
from mvq.baselines.conventional import case_, equal_size
from mvq.baselines.forms import compressed_bits
from mvq.recipe import Recipe
from mvq.recover import RecoverConfig, recover, refine_
from mvq.tasks.running import running

RESULTS = Path(__file__).parent / "results" / "recovery.csv"
NETWORKS = ("mobilenet_v2", "mobilenet_v1", "squeezenet1_1", "resnet20")
#: Name -> (target ratio over the compressed convolutions, recipe to start from).
RECIPES: dict[str, tuple[float, Recipe]] = {
    "8x": (8.0, Recipe(pattern="1:2", d=2)),
    "12x": (12.0, Recipe(pattern="1:2", d=4)),
    "16x": (16.0, Recipe(pattern="1:2", d=4)),
    "12x-2:4": (12.0, Recipe(pattern="2:4", d=4)),
    "16x-2:4": (16.0, Recipe(pattern="2:4", d=4)),
}
#: Parts from cheap to dear; each row adds one to those before.
ORDER = ("importance", "permute", "compensate", "batchnorm", "reconstruct")
FOR_ANY = ("batchnorm", "reconstruct")
CASES = {"D": ORDER, "packed": ORDER, "A": FOR_ANY, "B": FOR_ANY}
KEY = ("network", "recipe", "case", "parts", "limit")
COLUMNS = (
    *KEY,
    "fp32_percent",
    "top1_percent",
    "agreement_percent",
    "n",
    "pattern",
    "d",
    "n_codewords",
    "compressed_bits",
    "images",
    "seconds",
    "threads",
    "seed",
    "version",
    "config_hash",
)


@dataclass(frozen=True)
class Job:
    """One row."""

    adapter: Adapter
    name: str
    recipe: Recipe
    case: str
    parts: tuple[str, ...]
    config: RecoverConfig
    limit: int | None

    @property
    def key(self) -> tuple[str, ...]:
        """Rows with equal keys replace one another."""
        limit = "" if self.limit is None else str(self.limit)
        return (self.adapter.name, self.name, self.case, "+".join(self.parts) or "none", limit)

    @property
    def config_hash(self) -> str:
        """Of everything that decides the row."""
        facts = [self.key, self.recipe.to_dict(), asdict(self.config), mvq.__version__]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def recipe_for(network: str, name: str, model: nn.Module, seed: int) -> Recipe:
    """The recipe of case D whose number of codewords brings it nearest to the named ratio."""
    target, start = RECIPES[name]
    start = replace(start, seed=seed, **SPECIAL.get(network, {}))
    candidates = [replace(start, n_codewords=1 << b) for b in range(3, 13)]
    return min(candidates, key=lambda r: abs(math.log(expected_ratio(model, r) / target)))


def steps(case: str) -> list[tuple[str, ...]]:
    """Sets of parts of a case, each with one more."""
    order = CASES[case]
    return [order[:n] for n in range(len(order) + 1)]


@dataclass(frozen=True)
class Reference:
    """What the dense network says about the evaluation images, and what is true.

    Attributes:
        labels: true classes.
        predictions: of the dense network.
    """

    labels: Tensor
    predictions: Tensor


def predictions(model: nn.Module, adapter: Adapter, limit: int | None) -> Reference:
    """Labels, and the model's own answers."""
    labels, answers = [], []
    with running(model, None):
        for x, y in adapter.data(split="val", limit=limit):
            labels.append(y)
            answers.append(model(x).argmax(1))
    return Reference(torch.cat(labels), torch.cat(answers))


def compress(job: Job, images: Sequence[Tensor]) -> nn.Module:
    """The compressed network of a row."""
    model = job.adapter.build()
    if job.case in ("A", "B"):
        case_(model, job.case, job.recipe)
        if job.parts:
            refine_(model, job.adapter.build(), images, parts=job.parts, config=job.config)
        return model
    return recover(model, equal_size(job.recipe)[job.case], images, parts=job.parts, config=job.config)


def run(job: Job, reference: Reference, images: Sequence[Tensor]) -> dict[str, Any]:
    """Compress and measure."""
    started = time.perf_counter()
    model = compress(job, images)
    seconds = time.perf_counter() - started
    found = predictions(model, job.adapter, job.limit)
    recipe = equal_size(job.recipe)[job.case]
    return {
        **dict(zip(KEY, job.key, strict=True)),
        "fp32_percent": _percent(reference.predictions == reference.labels),
        "top1_percent": _percent(found.predictions == found.labels),
        "agreement_percent": _percent(found.predictions == reference.predictions),
        "n": len(found.labels),
        "pattern": str(recipe.pattern),
        "d": recipe.d,
        "n_codewords": recipe.n_codewords,
        "compressed_bits": compressed_bits(model),
        "images": min(job.config.images, sum(map(len, images))),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "seed": job.recipe.seed,
        "version": mvq.__version__,
        "config_hash": job.config_hash,
    }


def _percent(hits: Tensor) -> str:
    return f"{100 * float(hits.double().mean()):.2f}"


def read_rows(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows of an earlier run by key; none if the file is missing."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {tuple(row[k] for k in KEY): row for row in csv.DictReader(file)}


def write_rows(path: Path, rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Replace the CSV file atomically, in the order of networks, recipes, cases and parts."""

    def place(key: tuple[str, ...]) -> tuple[Any, ...]:
        network, recipe, case, parts, limit = key
        return (
            list(REGISTRY).index(network),
            list(RECIPES).index(recipe),
            limit,
            case,
            parts.count("+"),
            parts != "none",
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows, key=place))
    partial.replace(path)


def shuffled(adapter: Adapter, n: int, seed: int) -> list[Tensor]:
    """Calibration images in random order: as stored they come class by class. Labels are dropped."""
    images = torch.cat([x.half() for x, _ in adapter.calibration()])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    return [x.float() for x in images[order].split(100)]


def jobs(options: argparse.Namespace, network: str) -> list[Job]:
    """All rows of a network."""
    adapter, config = REGISTRY[network], RecoverConfig(autocast=options.autocast, seed=options.seed)
    config = replace(config, **json.loads(options.config))
    found = []
    for name in options.recipes:
        recipe = recipe_for(network, name, adapter.build(), options.seed)
        for case in options.cases:
            sets = steps(case) if not options.full_only else [CASES[case]]
            found += [Job(adapter, name, recipe, case, parts, config, options.limit) for parts in sets]
    return found


def measure(options: argparse.Namespace) -> None:
    """Do the jobs that have no row yet."""
    kept = read_rows(options.output)
    for network in options.networks:
        todo = [
            job
            for job in jobs(options, network)
            if options.force or kept.get(job.key, {}).get("config_hash") != job.config_hash
        ]
        if not todo:
            _say(f"{network}: already measured")
            continue
        adapter = REGISTRY[network]
        reference = predictions(adapter.build(), adapter, options.limit)
        images = shuffled(adapter, todo[0].config.images, options.seed)
        for i, job in enumerate(todo, 1):
            kept[job.key] = row = run(job, reference, images)
            write_rows(options.output, kept)
            _say(
                f"[{i}/{len(todo)}] {' '.join(job.key)}: {row['fp32_percent']} -> {row['top1_percent']} %, "
                f"agreement {row['agreement_percent']} %, {row['seconds']} s"
            )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(REGISTRY), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=["8x", "12x", "16x"])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--full-only", action="store_true", help="only the row of each case with all its parts")
    parser.add_argument("--limit", type=int, help="evaluate on the first N images only")
    parser.add_argument("--config", default="{}", help="JSON of RecoverConfig fields, e.g. '{\"images\": 256}'")
    parser.add_argument("--autocast", choices=["bfloat16"], help="mixed precision; twice as fast on CPUs with AMX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file")
    parser.add_argument("--force", action="store_true", help="measure again what has a row")
    measure(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
