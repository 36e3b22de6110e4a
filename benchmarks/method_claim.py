"""The claim of masked clustering on real weights: error on the kept weights at equal size.

    MVQ_DATA=... uv run --group bench python -m benchmarks.method_claim

The convolutions of every network (depth-wise ones left out), pruned 4:16 by magnitude, without training. Scope
`layer` gives each layer a codebook of k = 512 (fewer where a layer has under four subvectors a codeword), scope
`network` one of k = 512 for all.

* `plain`: common k-means on the pruned rows, decoded with the masks (case C of the paper's ablation); same bits as
  `masked`;
* `masked_published`: masked k-means started from random pruned rows, zeros included, as published;
* `masked`: masked k-means as `mvq` runs it (k-means++ start, lanes a row prunes filled from other rows);
* `packed`: packed codewords, same k, whose codebook is a quarter of the size;
* `packed_equal_bits`: packed codewords, for each codebook the largest power of two k that needs no more bits in
  total than `masked`.

Errors are on kept weights, relative to their energy, float codebooks, medians over seeds with the spread. Ratios are
medians of the ratios of one seed each.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np

import mvq
from benchmarks.networks import REGISTRY
from benchmarks.table import RESULTS, write_csv
from mvq.cluster import masked_kmeans
from mvq.grouping import to_subvectors, valid_lanes
from mvq.nn import eligible_layers
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask

D, PATTERN, K = 16, Pattern(4, 16), 512


Rows = tuple[np.ndarray, np.ndarray]


def subvectors(name: str) -> list[Rows]:
    """Dense rows and kept lanes of each of a network's convolutions."""
    layers = []
    for layer, module, role in eligible_layers(REGISTRY[name].build()):
        weight = module.weight.detach().float().numpy()
        if weight.ndim == 4 and role != "depthwise":
            mask = magnitude_mask(weight, PATTERN, D, name=layer)
            layers.append((to_subvectors(weight, D), mask & valid_lanes(weight.shape, D)))
    return layers


def total_bits(n_sub: int, k: int, width: int) -> int:
    """Assignments, mask ids and int8 codebook."""
    return n_sub * ((k - 1).bit_length() + PATTERN.mask_bits) + 8 * k * width


def fitting_codewords(n_sub: int) -> int:
    """K, or the largest power of two that leaves four subvectors a codeword."""
    return min(K, 1 << max(0, (n_sub // 4).bit_length() - 1))


def equal_bits_codewords(n_sub: int) -> int:
    """Most packed codewords, a power of two, that fit in the bits of the masked ones."""
    limit = total_bits(n_sub, fitting_codewords(n_sub), D)
    k = 1
    while 2 * k <= n_sub and total_bits(n_sub, 2 * k, PATTERN.kept_per(D)) <= limit:
        k *= 2
    return k


def errors(w: np.ndarray, kept: np.ndarray, seed: int) -> dict[str, float]:
    """Squared error on kept weights of each method, and their energy."""
    k, pruned = fitting_codewords(len(w)), (w * kept).astype(np.float32)
    options = {"seed": seed, "tol": 1e-3, "max_iters": 100}
    plain = masked_kmeans(pruned, np.ones_like(kept), k, **options)
    difference = (pruned - plain.codebook[plain.assignments]) * kept
    start = pruned[np.random.default_rng(seed).choice(len(w), k, replace=False)]
    distinct = len({row.tobytes() for row in pruned.round(6)})
    return {
        "energy": float((pruned.astype(np.float64) ** 2).sum()),
        "plain": float((difference.astype(np.float64) ** 2).sum()),
        "masked_published": masked_kmeans(w, kept, k, init=start, **options).sse,
        "masked": masked_kmeans(w, kept, k, **options).sse,
        "packed": masked_kmeans(w, kept, k, codewords="packed", **options).sse,
        "packed_equal_bits": masked_kmeans(
            w, kept, min(equal_bits_codewords(len(w)), distinct), codewords="packed", **options
        ).sse,
    }


def total(layers: list[Rows], seed: int) -> dict[str, float]:
    """Relative errors over all codebooks."""
    parts = [errors(w, kept, seed) for w, kept in layers]
    sums = {key: sum(part[key] for part in parts) for key in parts[0]}
    return {key: value / sums["energy"] for key, value in sums.items() if key != "energy"}


def measure(name: str, scope: str, seeds: int) -> dict[str, object]:
    """One row."""
    layers = subvectors(name)
    if scope == "network":
        layers = [(np.concatenate([w for w, _ in layers]), np.concatenate([kept for _, kept in layers]))]
    runs = [total(layers, seed) for seed in range(seeds)]
    sizes = [len(w) for w, _ in layers]
    row: dict[str, object] = {"network": name, "scope": scope, "n_sub": sum(sizes)}
    row["bits_masked"] = sum(total_bits(n, fitting_codewords(n), D) for n in sizes)
    row["bits_packed"] = sum(total_bits(n, fitting_codewords(n), PATTERN.kept_per(D)) for n in sizes)
    row["bits_packed_equal"] = sum(total_bits(n, equal_bits_codewords(n), PATTERN.kept_per(D)) for n in sizes)
    for method in runs[0]:
        values = [run[method] for run in runs]
        row[f"{method}_error"] = round(statistics.median(values), 5)
        row[f"{method}_spread"] = round(max(values) - min(values), 5)
    row["plain_over_masked"] = round(statistics.median(r["plain"] / r["masked"] for r in runs), 2)
    row["plain_over_published"] = round(statistics.median(r["plain"] / r["masked_published"] for r in runs), 2)
    for packed in ("packed", "packed_equal_bits"):
        for masked in ("masked_published", "masked"):
            saving = 1 - statistics.median(r[packed] / r[masked] for r in runs)
            row[f"{packed}_saving_vs_{masked}"] = round(saving, 4)
    return {**row, "seeds": seeds, "mvq": mvq.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in REGISTRY if not name.startswith(("pqf", "bgd"))]
    parser.add_argument("--networks", nargs="+", choices=list(REGISTRY), default=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "method_claim.csv")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for scope in ("layer", "network"):
            rows.append(measure(name, scope, args.seeds))
            print(rows[-1], flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
