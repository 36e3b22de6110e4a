"""How much of the accuracy that one-shot compression loses comes back from 1000 unlabelled images?

    MVQ_DATA=FOLDER uv run python -m benchmarks.recovery [--networks NAME ...] [--recipes 8x 12x 16x] [--limit N]

Sizes, passes of training and settings of the repair are those of `PLANS` unless others are asked for.

Case D is pruning and masked clustering, `packed` the same with codewords of half the size; A is dense, B pruned, both
with common k-means and dense decode and the length of subvectors of lowest error. All take at most the bits of D, but
for A and B, which may take 2% more as whole index bits leave a gap. `ours` leaves it to `mvq.allocate` whether a
layer is pruned and how long its subvectors are, by the Fisher information; where asked for, `ours, trust 0` and so on
trust that information less or more, and `ours, macs 0.75` and so on execute at most that share of the
multiply-accumulates of the compressed layers. The parts of `mvq.recover` are switched on one after the other in case D
of the recipes of `--ladder`, all at once elsewhere. A takes those that ask nothing of the method; B, D and packed
start from one pruned network, which all parts repaired. Calibration images come from the training side and their
labels are never read, but for the rows `+labels`: there the whole is fine-tuned with them. Where there are none,
`+training` fine-tunes it towards what the dense network says of them.

The metric is the network's own, agreement is with the dense network's classes. It is measured on what is loaded from
the file of each compressed network, `build/recovery/HASH.mvq`. Rows go to a CSV file as they are ready.
A row already there with the same configuration is kept, unless `--force` is given. `docs/results-recovery.md` is made
from the file; with `--report` only that.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mvq
from benchmarks.networks import REGISTRY, Adapter
from benchmarks.real_networks import SPECIAL, expected_ratio
from benchmarks.table import read_csv
from mvq import flops
from mvq.allocate import achieved_bits, allocate_untrained, fit_codewords
from mvq.allocate.untrained import TRUST
from mvq.baselines import cluster_conventional
from mvq.baselines.forms import compressed_bits
from mvq.bench.measuring import settings
from mvq.format import open_file
from mvq.nn import bake_
from mvq.recipe import Recipe
from mvq.recover import PARTS, RecoverConfig, recover_clustered_, recover_pruned_, refine_
from mvq.tasks.running import running
from mvq.train import Distillation, Matching, finetune

RESULTS = Path(__file__).parent / "results" / "recovery.csv"
MODELS = Path("build") / "recovery"
#: Packages of mvq that make the compressed networks.
CODE = ("allocate", "baselines", "cluster", "codebook", "nn", "prune", "recover")
REPORT = RESULTS.parents[2] / "docs" / "results-recovery.md"
INTRODUCTION = """\
# Accuracy back without labels

Made by `python -m benchmarks.recovery` from `recovery.csv` in `benchmarks/results`: pretrained networks, compressed in
one shot and repaired by `mvq.recover` from unlabelled training images. A is conventional clustering of the dense
weights, B the same of pruned weights, both with subvectors of the length of lowest error, D masked clustering of the
kept weights, `packed` the same with codewords of half the size. All take at most the bits of D, A and B up to 2% more;
index bits are whole, so that some leave up to 5% unused. `ours` chooses layer by layer what is pruned, d and k
(`mvq.allocate.allocate_untrained`, `mvq compress --recover --ratio`), within the same bits; it pruned nothing in the
rows below. `ours, macs 0.75` and `macs 0.5` bound the multiply-accumulates of the compressed layers, too
(`--max-macs`). `bytes` are those of the compressed layers, `none` is what compression alone leaves, `parts` what all
parts of the recovery bring back, and `won back` the share of the loss that is; `MACs %` what is executed of the
network's multiply-accumulates. A gets the parts that ask nothing of the method. `training` fine-tunes the result, with
labels where there are some, otherwise towards the dense network's outputs. Accuracy in percent on the validation
images, one seed. The standard error of a top-1 over 900 images is 1.4 to 1.7 points, of the difference of two cases
somewhat less.

Where half of the weights are pruned, most of what is lost is lost by that, and labels would be needed to train it back:
at 8x B, D and `packed` stay 3 to 4 points below the dense network on MobileNet-V1, 10 on SqueezeNet and 21 to 23 on
MobileNet-V2, and A is above them all. As files get smaller A breaks down first: at 16x the order is A, B, D, `ours` on
SqueezeNet, with wide gaps, and on MobileNet-V2, where A, B, D and `packed` are 5.0 points apart; on MobileNet-V1 B is
2.9 points above D, whose mask ids take a quarter of its bits. D and `packed` execute half of the multiply-accumulates,
all others all. `ours` is ahead of all at 12x and 16x, by 3 to 22 points; at 8x A and `ours` are as good as the dense
network but for the error. How much of that lead is the choice of layers and how much the repair differs: on
MobileNet-V2 at 12x the parts that A gets bring it to 76.1%, all parts to 76.2%; SqueezeNet at 16x has 38.8% without
compensation (trials, before the last correction). Fine-tuning with labels of the same 1000 images changes these by -1.7
to +4.1 points.

Of the parts, one after the other in case D, error compensation is what a network pruned at once needs first: before it
all are at chance, with it MobileNet-V1 keeps 68 to 72%, MobileNet-V2 26 to 40% and SqueezeNet 51 to 56%. Batch norm
adds 0.4 to 0.9, 10.7 to 13.3 and -2.1 to -0.7 points to that (SqueezeNet has none; its biases are corrected),
reconstruction 0.8 to 1.6, 7.8 to 9.1 and 2.6 to 4.6. Distillation changes what is left by -2.1 to +3.2, by nothing on
average: it adds on SqueezeNet and takes on MobileNet-V1.

The first quarter of the multiply-accumulates costs little of what half of them costs: at 8x `ours, macs 0.75` stays 1.0
point below the dense network on SqueezeNet and 4.7 on MobileNet-V2, where D, B and `packed`, all layers of which are
pruned 1:2, are 9.8 to 11.1 and 21 to 23 below. With half of them to be saved the choice of layers gains little:
SqueezeNet keeps 59.6%, as with D and `packed` (59.3 and 58.9), in 0.74 of the size, MobileNet-V2 58.6%, where D has
57.1.

On DeepLab-V3 at 8x A (52.9%) and `ours` (51.4%) are as good as the dense network (51.6%) and what is pruned is not
(33.2 to 35.7%, trained 33.6 to 36.3%): 40 images and ten steps a block are few for half of the weights. The recovery is
told that outputs are classes at every pixel (`mvq.outputs`); with every value counted alike A had 51.3%, `ours` 52.1%,
D 33.7%.

YOLOX-Nano at 8x has a codebook a layer, as its layers' weights differ in scale by thirty times, and twelve passes of
distillation after pruning: without them D kept 16.6 AP of 30.8, with them 17.4. `ours` (29.1) is ahead of A (27.9, 2%
more bytes), and what is pruned keeps 17.0 to 17.8. Ten passes of training on the same 160 images change these by -0.4
to +0.4. What case D keeps comes by compensation nearly alone: it has 16.6 by that, 15.9 after batch norm, 16.3 after
reconstruction, 17.4 after distillation.
"""
NETWORKS = ("mobilenet_v2", "mobilenet_v1", "squeezenet1_1", "yolox_nano", "deeplab_v3")
#: Name -> (target ratio over the compressed convolutions, recipe to start from).
RECIPES: dict[str, tuple[float, Recipe]] = {
    "8x": (8.0, Recipe(pattern="1:2", d=2)),
    "12x": (12.0, Recipe(pattern="1:2", d=4)),
    "16x": (16.0, Recipe(pattern="1:2", d=4)),
    "12x-2:4": (12.0, Recipe(pattern="2:4", d=4)),
    "16x-2:4": (16.0, Recipe(pattern="2:4", d=4)),
}


@dataclass(frozen=True)
class Plan:
    """What is measured of a network.

    Attributes:
        recipes: names.
        epochs: passes of training at the end.
        config: of the recovery.
        changes: to the recipe.
        ladder: whether case D has a row for each part switched on.
    """

    recipes: tuple[str, ...] = ("8x", "12x", "16x")
    epochs: int = 2
    config: RecoverConfig = field(default_factory=partial(RecoverConfig, autocast="bfloat16"))
    changes: Mapping[str, Any] = field(default_factory=dict)
    ladder: bool = True


#: Of networks with few, large images; all others have `Plan()`.
PLANS = {
    "yolox_nano": Plan(
        ("8x",),
        10,
        RecoverConfig(prune_epochs=12, prune_steps=60, block_steps=40, batch_size=16, autocast="bfloat16"),
        # Its layers differ in scale by thirty times, and at this size codebooks of their own are 4% of the bits.
        {"scope": "layer"},
    ),
    "deeplab_v3": Plan(
        ("8x",),
        1,
        RecoverConfig(
            images=40,
            prune_steps=10,
            block_steps=10,
            batch_size=8,
            distill_epochs=1,
            fisher_images=16,
            lr=0.001,
            autocast="bfloat16",
        ),
        ladder=False,
    ),
}
FOR_ANY = ("batchnorm", "reconstruct", "distill")
CASES = {"A": FOR_ANY, "B": PARTS, "D": PARTS, "packed": PARTS, "ours": PARTS}
#: Options of `allocate_untrained`: its trust in the Fisher information, and the share of multiply-accumulates that may
#: stay. Others than `ours` only where asked for.
ALLOCATED: dict[str, tuple[float, float | None]] = {
    "ours": (TRUST, None),
    **{f"ours, trust {trust:g}": (trust, None) for trust in (0.0, 0.5, 1.0)},
    **{f"ours, macs {share:g}": (TRUST, share) for share in (0.75, 0.5)},
}
ALL_CASES = CASES | dict.fromkeys(ALLOCATED, PARTS)
#: Conventional vector quantization: bits that it may take beside those of case D, lengths of subvectors, codewords.
SLACK, DENSE_LANES, MOST_CODEWORDS = 1.02, (1, 2, 3, 4, 6, 8), 4096
LABELS, TRAINING = "labels", "training"
TRAINING_LR = 2e-4
KEY = ("network", "recipe", "case", "parts", "limit")
COLUMNS = (
    *KEY,
    "metric",
    "fp32_percent",
    "percent",
    "agreement_percent",
    "n",
    "pattern",
    "d",
    "n_codewords",
    "macs_percent",
    "compressed_bits",
    "images",
    "pruning_seconds",
    "seconds",
    "threads",
    "seed",
    "version",
    "config_hash",
)


@dataclass(frozen=True)
class Job:
    """One network, compressed in one way; gives a row, and another one after training.

    Attributes:
        adapter: network and data.
        name: of the recipe.
        recipe: of case D.
        case: one of `CASES`.
        parts: of recovery.
        config: of recovery.
        limit: of evaluation images.
        epochs: of training; 0 for none.
    """

    adapter: Adapter
    name: str
    recipe: Recipe
    case: str
    parts: tuple[str, ...]
    config: RecoverConfig
    limit: int | None
    epochs: int = 0

    def key(self, trained: bool = False) -> tuple[str, ...]:
        """Rows with equal keys replace one another."""
        limit = "" if self.limit is None else str(self.limit)
        training = LABELS if self.adapter.loss is None else TRAINING
        parts = "+".join([*self.parts, *[training] * trained]) or "none"
        return (self.adapter.name, self.name, self.case, parts, limit)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """Of all its rows."""
        return [self.key(), *[self.key(trained=True)] * (self.epochs > 0)]

    @property
    def options(self) -> dict[str, Any]:
        """Of the recovery."""
        adapter = self.adapter
        return {"parts": self.parts, "config": self.config, "score": adapter.score, "loss": adapter.loss}

    @property
    def config_hash(self) -> str:
        """Of everything that decides the rows."""
        facts = [self.key(), self.recipe.to_dict(), asdict(self.config), self.epochs, mvq.__version__]
        facts += [meaning.__name__ for meaning in (self.adapter.score, self.adapter.loss) if meaning is not None]
        facts += [value for value in ALLOCATED.get(self.case, ()) if value is not None]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def model_hash(self) -> str:
        """Of everything that decides the compressed network, the code included: other code makes another file."""
        found = hashlib.sha256(replace(self, epochs=0).config_hash.encode())
        for path in sorted(path for package in CODE for path in (Path(mvq.__file__).parent / package).rglob("*.py")):
            found.update(path.read_bytes())
        return found.hexdigest()[:16]

    @property
    def pruned_hash(self) -> str:
        """Of everything that decides the pruned network."""
        config = {
            key: value for key, value in asdict(self.config).items() if key not in ("block_steps", "distill_epochs")
        }
        layers = [str(self.recipe.pattern), self.recipe.d, SPECIAL.get(self.adapter.name, {}), mvq.__version__]
        facts = [self.adapter.name, self.parts, config, layers]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def recipe_for(network: str, name: str, model: nn.Module, seed: int) -> Recipe:
    """The recipe of case D whose number of codewords brings it nearest to the named ratio."""
    target, start = RECIPES[name]
    start = replace(start, seed=seed, **{**SPECIAL.get(network, {}), **PLANS.get(network, Plan()).changes})
    candidates = [replace(start, n_codewords=1 << b) for b in range(3, 13)]
    return min(candidates, key=lambda r: abs(math.log(expected_ratio(model, r) / target)))


def steps(case: str, *, ladder: bool) -> list[tuple[str, ...]]:
    """Sets of parts of a case: none and all, or each with one more."""
    order = ALL_CASES[case]
    return [order[:n] for n in (range(len(order) + 1) if ladder else (0, len(order)))]


@dataclass(frozen=True)
class Found:
    """What a network says about the evaluation images.

    Attributes:
        metric: name of `value`.
        value: in percent.
        n: images.
        classes: ranked first, by image; None for other tasks than classification.
    """

    metric: str
    value: float
    n: int
    classes: Tensor | None = None

    def agreement(self, dense: Found) -> str:
        """Percentage of images that get the same class."""
        if self.classes is None or dense.classes is None:
            return ""
        return f"{100 * float((self.classes == dense.classes).double().mean()):.2f}"


def measure(model: nn.Module, adapter: Adapter, limit: int | None) -> Found:
    """The network's own metric, and its classes."""
    if adapter.task != "classification":
        result = adapter.evaluate(model, limit)
        return Found(result.metric, result.value, result.n)
    labels, classes = [], []
    with running(model, None):
        for x, y in adapter.data(split="val", limit=limit):
            labels.append(y)
            classes.append(model(x).argmax(1))
    found, wanted = torch.cat(classes), torch.cat(labels)
    return Found("top1", 100 * float((found == wanted).double().mean()), len(found), found)


class Pruned:
    """The last pruned networks, as several cases and sizes start from one."""

    def __init__(self) -> None:
        self.key = ""
        self.made: tuple[nn.Module, nn.Module, float] | None = None

    def get(self, job: Job, images: Sequence[Tensor]) -> tuple[nn.Module, nn.Module, float]:
        """Pruned and dense network, and the seconds that pruning took."""
        if self.made is None or self.key != job.pruned_hash:
            self.made = None
            model, started = job.adapter.build(), time.perf_counter()
            dense = recover_pruned_(model, job.recipe, images, **job.options)
            self.key, self.made = job.pruned_hash, (model, dense, time.perf_counter() - started)
        model, dense, seconds = self.made
        return copy.deepcopy(model), dense, seconds


def compress(job: Job, images: Sequence[Tensor], pruned: Pruned) -> tuple[nn.Module, float]:
    """The compressed network of a job, and the seconds that pruning took."""
    started, model = time.perf_counter(), job.adapter.build()
    limit = achieved_bits(model, job.recipe).total
    if job.case in ALLOCATED:
        trust, max_macs = ALLOCATED[job.case]
        recipe = allocate_untrained(
            model, job.recipe, images, limit, trust=trust, score=job.adapter.score, max_macs=max_macs
        )
        dense = recover_pruned_(model, recipe, images, **job.options)
        pruning_seconds = time.perf_counter() - started
        recover_clustered_(model, recipe, images, dense=dense, **job.options)
        return model, pruning_seconds
    if job.case == "A":
        dense, seconds = job.adapter.build(), 0.0
    else:
        model, dense, seconds = pruned.get(job, images)
    if job.case in ("D", "packed"):
        recipe = job.recipe
        if job.case == "packed":
            recipe = fit_codewords(model, replace(recipe, codewords="packed"), limit)
        recover_clustered_(model, recipe, images, dense=dense, **job.options)
        return model, seconds
    if job.case == "B":
        bake_(model)
    model = cluster_conventional(
        model, job.recipe, int(SLACK * limit), lanes=DENSE_LANES, most_codewords=MOST_CODEWORDS
    )
    any_parts = tuple(part for part in job.parts if part in FOR_ANY)
    if any_parts:
        refine_(model, dense, images, parts=any_parts, config=job.config, loss=job.adapter.loss)
    return model, seconds


def compressed(job: Job, images: Sequence[Tensor], pruned: Pruned, *, force: bool) -> tuple[nn.Module, float, float]:
    """The network as its file gives it, and the seconds that pruning and all took; made where there is no file yet."""
    path = MODELS / f"{job.model_hash}.mvq"
    if force or not path.is_file():
        started = time.perf_counter()
        model, pruning_seconds = compress(job, images, pruned)
        taken = {"pruning_seconds": pruning_seconds, "seconds": time.perf_counter() - started}
        path.parent.mkdir(parents=True, exist_ok=True)
        mvq.save(model, path, provenance=taken)
    with open_file(path) as file:
        taken = file.provenance
    return mvq.load_into(job.adapter.build(), path), taken["pruning_seconds"], taken["seconds"]


def run(
    job: Job, reference: Found, images: Sequence[Tensor], pruned: Pruned, *, force: bool = False
) -> Iterator[dict[str, Any]]:
    """Compress and measure; then train and measure again."""
    model, pruning_seconds, seconds = compressed(job, images, pruned, force=force)
    started = time.perf_counter() - seconds
    for trained in (False, True)[: len(job.keys)]:
        if trained:
            train(model, job)
            seconds = time.perf_counter() - started
        found = measure(model, job.adapter, job.limit)
        yield {
            **dict(zip(KEY, job.key(trained), strict=True)),
            "metric": found.metric,
            "fp32_percent": f"{reference.value:.2f}",
            "percent": f"{found.value:.2f}",
            "agreement_percent": found.agreement(reference),
            "n": found.n,
            **settings(model),
            "macs_percent": macs_percent(model, job.adapter),
            "compressed_bits": compressed_bits(model),
            "images": min(job.config.images, sum(map(len, images))),
            "pruning_seconds": round(pruning_seconds, 1),
            "seconds": round(seconds, 1),
            "threads": torch.get_num_threads(),
            "seed": job.recipe.seed,
            "version": mvq.__version__,
            "config_hash": job.config_hash,
        }


def macs_percent(model: nn.Module, adapter: Adapter) -> str:
    """Executed multiply-accumulates of the whole network, of its dense ones."""
    found = flops.count(model, torch.zeros(1, *adapter.input_shape))
    return f"{100 * found.executed / found.dense:.1f}"


def train(model: nn.Module, job: Job) -> None:
    """Fine-tune codebooks and what is not compressed, with labels and the dense network's scores, or these alone."""
    assert job.adapter.training is not None
    data = job.adapter.training(batch_size=job.config.batch_size, seed=job.config.seed)
    dense, loss = job.adapter.build(), job.adapter.loss
    finetune(
        model,
        data,
        epochs=job.epochs,
        lr=TRAINING_LR,
        bn_eval=True,
        autocast=job.config.autocast,
        objective=Distillation(dense, temperature=1.0, weight=0.5) if loss is None else Matching(dense, loss),
    )


def read_rows(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Rows of an earlier run by key; none if the file is missing."""
    return {tuple(row[k] for k in KEY): row for row in read_csv(path)}


def write_rows(path: Path, rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Replace the CSV file atomically, in the order of networks, recipes, cases and parts."""

    def place(key: tuple[str, ...]) -> tuple[Any, ...]:
        network, recipe, case, parts, limit = key
        order = (list(REGISTRY).index(network), list(RECIPES).index(recipe), limit, list(ALL_CASES).index(case))
        return (*order, parts.count("+"), parts != "none")

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
    """Everything that is asked of a network; what starts from one pruned network comes together."""
    adapter, plan = REGISTRY[network], PLANS.get(network, Plan())
    config = replace(plan.config, seed=options.seed, **json.loads(options.config))
    wanted_epochs = plan.epochs if options.epochs is None else options.epochs
    planned = plan.recipes if plan.ladder else ()
    ladder = planned if options.ladder is None else options.ladder
    found = []
    for name in options.recipes or plan.recipes:
        recipe = recipe_for(network, name, adapter.build(), options.seed)
        for case in options.cases:
            for parts in steps(case, ladder=case == "D" and name in ladder):
                epochs = wanted_epochs if parts == ALL_CASES[case] and adapter.training is not None else 0
                found.append(Job(adapter, name, recipe, case, parts, config, options.limit, epochs))
    return sorted(found, key=lambda job: len(job.parts))


def measure_all(options: argparse.Namespace) -> None:
    """Do the jobs that have no row yet."""
    kept = read_rows(options.output)
    for network in options.networks:
        todo = [
            job
            for job in jobs(options, network)
            if options.force or any(kept.get(key, {}).get("config_hash") != job.config_hash for key in job.keys)
        ]
        if not todo:
            _say(f"{network}: already measured")
            continue
        adapter, pruned = REGISTRY[network], Pruned()
        reference = measure(adapter.build(), adapter, options.limit)
        images = shuffled(adapter, todo[0].config.images, options.seed)
        for i, job in enumerate(todo, 1):
            for row in run(job, reference, images, pruned, force=options.force):
                kept[tuple(row[k] for k in KEY)] = row
                write_rows(options.output, kept)
                _say(
                    f"[{i}/{len(todo)}] {' '.join(row[k] for k in KEY)}: {row['fp32_percent']} -> {row['percent']} %, "
                    f"agreement {row['agreement_percent']} %, {row['pruning_seconds']} + {row['seconds']} s"
                )


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The document."""
    lines = [INTRODUCTION]
    for network in [name for name in REGISTRY if any(row["network"] == name for row in rows)]:
        ours = [row for row in rows if row["network"] == network and not row["limit"]]
        lines += [
            f"## {network}",
            "",
            f"Dense: {ours[0]['fp32_percent']}% {ours[0]['metric']}, {ours[0]['n']} images.",
            "",
        ]
        lines += [
            "| size | case | pattern, d, k | MACs % | bytes | none | parts | won back | training |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, case in dict.fromkeys((row["recipe"], row["case"]) for row in ours):
            found = {row["parts"]: row for row in ours if (row["recipe"], row["case"]) == (name, case)}
            parts = "+".join(ALL_CASES[case])
            one = next(iter(found.values()))
            wanted = ("none", parts, *(f"{parts}+{how}" for how in (LABELS, TRAINING)))
            none, repaired, labels, training = (
                float(found[key]["percent"]) if key in found else None for key in wanted
            )
            share = None
            if none is not None and repaired is not None:
                share = 100 * (repaired - none) / (float(one["fp32_percent"]) - none)
            cells = (none, repaired, share, labels if training is None else training)
            text = " | ".join("" if cell is None else f"{cell:.1f}" for cell in cells)
            size = f"{-(-int(one['compressed_bits']) // 8):,}"
            how = f"{one['pattern']}, {one['d']}, {one['n_codewords']} | {one['macs_percent']}"
            lines.append(f"| {name} | {case} | {how} | {size} | {text} |")
        lines += ["", *_ladder(ours)]
    return "\n".join(lines).rstrip() + "\n"


def _ladder(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Case D with one part more in each column, where that was measured."""
    found = {(row["recipe"], row["parts"]): row["percent"] for row in rows if row["case"] == "D"}
    ladder = steps("D", ladder=True)
    full = [
        name
        for name in dict.fromkeys(row["recipe"] for row in rows)
        if all((name, "+".join(parts) or "none") in found for parts in ladder)
    ]
    if not full:
        return []
    lines = [f"| D, parts one by one | none | {' | '.join(f'+ {part}' for part in PARTS)} |"]
    lines.append("|---|" + "---|" * len(ladder))
    for name in full:
        cells = (f"{float(found[name, '+'.join(parts) or 'none']):.1f}" for parts in ladder)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(REGISTRY), default=list(NETWORKS), metavar="NAME")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=list(RECIPES),
    )
    parser.add_argument("--cases", nargs="+", choices=list(ALL_CASES), default=list(CASES), metavar="CASE")
    parser.add_argument(
        "--ladder",
        nargs="*",
        choices=list(RECIPES),
        help="recipes whose case D has a row for each part switched on; default: those of the plan",
    )
    parser.add_argument("--epochs", type=int, help="passes of training at the end; 0 for none")
    parser.add_argument("--limit", type=int, help="evaluate on the first N images only")
    parser.add_argument(
        "--config",
        default="{}",
        help="JSON of RecoverConfig fields that differ from the plan's, e.g. '{\"images\": 256}'",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file")
    parser.add_argument("--force", action="store_true", help="measure again what has a row")
    parser.add_argument("--report", action="store_true", help="only write the document")
    options = parser.parse_args(arguments)
    if not options.report:
        measure_all(options)
    if options.output == RESULTS:
        REPORT.write_text(report(read_csv(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
