"""The cases of the paper's ablation on real weights, at equal size, before any training.

    MVQ_DATA=... uv run --group bench python -m benchmarks.ablation

A: dense weights, common k-means, dense decode. B: pruned weights, common k-means, dense decode. C: pruned, common
k-means, decoded with the masks. D: pruned, masked k-means. packed: D with packed codewords, twice as many. Settings
4:16, d = 16, k = 512 and their equals; int8 codebooks, one for the network.

Errors are relative to the energy of the weights they are summed over: `total` over all weights that were clustered,
`important` over the weights that the 4:16 magnitude mask keeps, `dense` over all weights against the dense ones. The
weights never saw sparse training, so `dense` is large for every pruned case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mvq
from benchmarks.networks import REGISTRY
from benchmarks.table import RESULTS, write_csv
from mvq.baselines import ablation
from mvq.nn import eligible_layers
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import Recipe

RECIPE = Recipe(pattern="4:16", d=16, n_codewords=512, scope="network", classifier="int8")


def energies(name: str) -> tuple[float, float]:
    """Energy of all weights that the recipe compresses, and of those its mask keeps."""
    layers = eligible_layers(REGISTRY[name].build())
    resolved = RECIPE.resolve([(layer, role) for layer, _, role in layers])
    dense = kept = 0.0
    for layer, module, _ in layers:
        if resolved[layer].treatment == "compress":
            weight = module.weight.detach().double().numpy()
            dense += float((weight**2).sum())
            mask = magnitude_mask(weight.astype("float32"), Pattern(4, 16), 16, name=layer)
            kept += float((weight[weight_mask(mask, weight.shape)] ** 2).sum())
    return dense, kept


def measure(name: str) -> list[dict[str, object]]:
    """One row a case."""
    dense, kept = energies(name)
    return [
        {
            "network": name,
            "case": report.case,
            "bits": report.bits,
            "total_error": round(report.total_sse / (dense if report.case == "A" else kept), 5),
            "important_error": round(report.important_sse / kept, 5),
            "dense_error": round(report.dense_sse / dense, 5),
            "seed": RECIPE.seed,
            "mvq": mvq.__version__,
        }
        for report in ablation(REGISTRY[name].build(), RECIPE)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=list(REGISTRY), default=["resnet20", "resnet32", "mobilenet_v2"]
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "ablation.csv")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for row in measure(name):
            rows.append(row)
            print(row, flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
