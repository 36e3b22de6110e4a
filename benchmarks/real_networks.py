"""Compress real networks, load the files in fresh processes, and measure them on real images.

    MVQ_DATA=FOLDER uv run python -m benchmarks.real_networks [--networks NAME ...] [--recipes 16x 22x] [--limit N]

Every network is compressed at about 16x (1:2, d = 8) and about 22x (4:16, d = 16), counted over the compressed
convolutions. The number of codewords is the power of two that comes nearest to that ratio; networks under a million
weights share one codebook among all layers, because a codebook a layer would eat the saving. First convolution,
depth-wise and prediction layers are int8. There is no fine-tuning and no sparse training here: the accuracy after
one-shot pruning is that of the first two steps alone.

Rows go to a CSV file as they are ready. A row already there with the same configuration is kept, unless `--force` is
given.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mvq
from benchmarks.networks import REGISTRY, Adapter
from benchmarks.table import read_csv
from mvq.allocate import achieved_bits
from mvq.compressed import CompressedModel
from mvq.grouping import from_subvectors
from mvq.nn import eligible_layers, extract
from mvq.recipe import Recipe
from mvq.sizes import Size, sizes
from mvq.tasks import Result

RESULTS = Path(__file__).parent / "results" / "real_networks.csv"
MODELS = Path("build") / "real_networks"
NETWORKS = ("resnet20", "resnet32", "squeezenet1_1", "mobilenet_v1", "mobilenet_v2", "yolox_nano", "deeplab_v3")
#: Name -> (target ratio, recipe to start from).
RECIPES: dict[str, tuple[float, Recipe]] = {
    "16x": (16.0, Recipe(pattern="1:2", d=8)),
    "22x": (22.0, Recipe(pattern="4:16", d=16)),
}
#: Changes for single networks. A codebook for the whole network suits those with small layers. Small layers that
#: predict (1 to 80 outputs, no batch norm after them) are kept in int8, as they hold next to nothing.
SPECIAL: dict[str, dict[str, Any]] = {
    "resnet20": {"scope": "network", "classifier": "int8"},
    "resnet32": {"scope": "network", "classifier": "int8"},
    "yolox_nano": {"scope": "network", "overrides": {"head.*_preds.*": {"treatment": "int8"}}},
    "deeplab_v3": {"overrides": {"classifier": {"treatment": "int8"}}},
}
CONVENTIONS = ("compressed_convs", "plus_first_conv", "plus_classifier", "whole_model", "on_disk")
COLUMNS = (
    "network",
    "recipe",
    "task",
    "metric",
    "n",
    "limit",
    "fp32_percent",
    "compressed_percent",
    "pattern",
    "d",
    "n_codewords",
    "scope",
    "codewords",
    "masked_sse",
    "masked_error_relative",
    "total_sse",
    "bits_per_weight",
    *(f"{c}_bytes" for c in CONVENTIONS),
    *(f"{c}_ratio" for c in CONVENTIONS),
    "disk_over_formula_percent",
    "compress_s",
    "evaluate_s",
    "seed",
    "version",
    "config_hash",
)


@dataclass(frozen=True)
class Job:
    """One network at one recipe."""

    adapter: Adapter
    name: str
    recipe: Recipe
    limit: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Rows with equal keys replace one another."""
        return (self.adapter.name, self.name, _text(self.limit))

    @property
    def config_hash(self) -> str:
        """Of everything that decides the row."""
        config = [self.adapter.name, self.recipe.to_dict(), self.limit, mvq.__version__]
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def expected_ratio(model: nn.Module, recipe: Recipe) -> float:
    """Ratio over the compressed convolutions that a recipe will give."""
    return achieved_bits(model, recipe, convs_only=True).ratio


def recipe_for(network: str, name: str, model: nn.Module, seed: int) -> Recipe:
    """The recipe of a network whose number of codewords brings it nearest to the named ratio."""
    target, start = RECIPES[name]
    start = replace(start, seed=seed, **SPECIAL.get(network, {}))
    candidates = [replace(start, n_codewords=1 << b) for b in range(4, 13)]
    return min(candidates, key=lambda r: abs(math.log(expected_ratio(model, r) / target)))


def errors(model: CompressedModel, original: Mapping[str, NDArray[np.float32]]) -> tuple[float, float, float]:
    """Squared error over kept weights, the energy of those weights, and the squared error over all weights.

    Against the weights before pruning, in the vector-quantized layers, with int8 codebooks.
    """
    masked = energy = total = 0.0
    for layer in model.vq_layers:
        weight = original[layer.name].astype(np.float64)
        kept = from_subvectors(layer.mask(), layer.shape)
        squared = (weight - model.dense_weight(layer)) ** 2
        masked += float(squared[kept].sum())
        energy += float((weight[kept] ** 2).sum())
        total += float(squared.sum())
    return masked, energy, total


def run(job: Job, fp32: Result, folder: Path) -> dict[str, Any]:
    """Compress, save, measure in a fresh process."""
    model = job.adapter.build()
    original = {name: module.weight.detach().numpy().copy() for name, module, _ in eligible_layers(model)}  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    started = time.perf_counter()
    mvq.prune_(model, job.recipe)
    mvq.cluster_(model, job.recipe, progress=True)
    compress_s = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.adapter.name}-{job.name}.mvq"
    mvq.save(model, path, provenance=_provenance(job.adapter))
    compressed = extract(model)
    started = time.perf_counter()
    result = evaluate_in_fresh_process(path, job.adapter.name, job.limit)
    evaluate_s = time.perf_counter() - started
    masked, energy, total = errors(compressed, original)
    table = sizes(compressed, path.stat().st_size)
    return {
        "network": job.adapter.name,
        "recipe": job.name,
        "task": result.task,
        "metric": result.metric,
        "n": result.n,
        "limit": _text(job.limit),
        "fp32_percent": f"{fp32.value:.3f}",
        "compressed_percent": f"{result.value:.3f}",
        "pattern": str(job.recipe.pattern),
        "d": job.recipe.d,
        "n_codewords": job.recipe.n_codewords,
        "scope": job.recipe.scope,
        "codewords": job.recipe.codewords,
        "masked_sse": f"{masked:.6g}",
        "masked_error_relative": f"{masked / energy:.6f}",
        "total_sse": f"{total:.6g}",
        **_size_columns(table),
        "compress_s": f"{compress_s:.1f}",
        "evaluate_s": f"{evaluate_s:.1f}",
        "seed": job.recipe.seed,
        "version": mvq.__version__,
        "config_hash": job.config_hash,
    }


def _provenance(adapter: Adapter) -> dict[str, Any]:
    facts: dict[str, Any] = {"network": adapter.name, "task": adapter.task}
    if adapter.preprocessing is not None:
        facts["preprocessing"] = adapter.preprocessing.to_dict()
    return facts


def _size_columns(table: Mapping[str, Size]) -> dict[str, Any]:
    convs = table["compressed_convs"]
    out: dict[str, Any] = {"bits_per_weight": f"{32 * convs.bits / convs.dense_bits:.4f}"}
    out |= {f"{c}_bytes": table[c].bytes for c in CONVENTIONS}
    out |= {f"{c}_ratio": f"{table[c].ratio:.3f}" for c in CONVENTIONS}
    out["disk_over_formula_percent"] = f"{100 * (table['on_disk'].bits / table['whole_model'].bits - 1):.3f}"
    return out


def evaluate_in_fresh_process(path: Path, network: str, limit: int | None) -> Result:
    """Measure a file in a new interpreter that shares nothing with this one but the file."""
    command = [sys.executable, "-m", "benchmarks.real_networks", "--evaluate", str(path), "--networks", network]
    command += [] if limit is None else ["--limit", str(limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return Result.from_dict(json.loads(done.stdout.splitlines()[-1]))


def evaluate_file(path: Path, adapter: Adapter, limit: int | None) -> Result:
    """Load a file onto a network whose own state is wiped first, so that every value must come from the file."""
    model = adapter.build()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    mvq.load_into(model, path, dense=True)
    return adapter.evaluate(model.eval(), limit, progress=True)


def read_rows(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows of an earlier run by key; none if the file is missing."""
    return {(row["network"], row["recipe"], row["limit"]): row for row in read_csv(path)}


def write_rows(path: Path, rows: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> None:
    """Replace the CSV file atomically, in the order of networks and recipes."""
    names = list(REGISTRY)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows, key=lambda k: (names.index(k[0]), *k[1:])))
    partial.replace(path)


def _text(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _baseline(adapter: Adapter, limit: int | None, rows: Mapping[Any, Mapping[str, Any]]) -> Result:
    """The unchanged network's result, from a row of this version where there is one."""
    for row in rows.values():
        same = (row["network"], row["limit"], row["version"]) == (adapter.name, _text(limit), mvq.__version__)
        if same:
            return Result(row["task"], row["metric"], float(row["fp32_percent"]), int(row["n"]))
    return adapter.evaluate(adapter.build(), limit, progress=True)


def measure(options: argparse.Namespace) -> None:
    """Do the jobs that have no row yet."""
    rows = {} if options.force else read_rows(options.output)
    work = [(network, recipe) for network in options.networks for recipe in options.recipes]
    kept = read_rows(options.output)
    for i, (network, name) in enumerate(work, 1):
        adapter = REGISTRY[network]
        recipe = recipe_for(network, name, adapter.build(), options.seed)
        job = Job(adapter, name, recipe, options.limit)
        head = f"[{i}/{len(work)}] {network} {name}"
        if rows.get(job.key, {}).get("config_hash") == job.config_hash:
            _say(f"{head}: already measured")
            continue
        _say(f"{head}: {recipe.pattern}, d={recipe.d}, {recipe.n_codewords} codewords a {recipe.scope}")
        kept[job.key] = rows[job.key] = row = run(job, _baseline(adapter, options.limit, rows), options.models)
        write_rows(options.output, kept)
        _say(
            f"{head}: ratio {row['compressed_convs_ratio']} (whole model {row['whole_model_ratio']}), "
            f"{row['metric']} {row['fp32_percent']} -> {row['compressed_percent']} %, "
            f"relative masked error {row['masked_error_relative']}, {row['on_disk_bytes']} bytes, "
            f"{row['compress_s']} s"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(REGISTRY), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--limit", type=int, help="evaluate on the first N images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder for the .mvq files")
    parser.add_argument("--force", action="store_true", help="measure again what has a row")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.evaluate is not None:
        result = evaluate_file(options.evaluate, REGISTRY[options.networks[0]], options.limit)
        print(json.dumps(result.to_dict()))
    else:
        options.models = options.models.resolve()
        measure(options)


if __name__ == "__main__":
    main()
