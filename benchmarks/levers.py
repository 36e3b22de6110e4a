"""What further levers would gain on real weights at equal size, before any fine-tuning.

    MVQ_DATA=... uv run --group bench python -m benchmarks.levers [--networks NAME ...] [--sparse-steps N]

The convolutions of a network (depth-wise ones left out) at 4:16, d = 16, packed codewords, one codebook for all,
magnitude masks. The reference has k = 512 or the power of two nearest below n_sub / 16 and sets the size; every other
row has at most its bits. With `--sparse-steps` the CIFAR networks are first trained that many steps under moving masks
(SR-STE), distilled from themselves; those rows are named `*_sparse`.

* `power_of_two`: the reference. At the size `below_next`, that of 1.5 k, the largest power of two is still the
  reference's k; `any_k` fills it;
* `sign_split`: signs of the kept weights stored (Q bits), k-means on magnitudes with 2^Q times fewer codewords;
* `unit_rms`: every layer divided by its RMS, codewords fitted to the error of the true weights; its 32 bits a layer
  are added, though a batch norm behind the layer takes the scale for nothing;
* `residual`: two codebooks whose codewords are added, the best split of the index bits, fitted jointly;
* `entropy`: bits that ideal coders of indices (a model a layer, or one for all) and of mask ids would take.

Errors are on kept weights, relative to their energy, float codebooks, medians over seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mvq
from benchmarks.networks import REGISTRY
from benchmarks.table import RESULTS, write_csv
from mvq.cluster import assign, masked_kmeans
from mvq.compressed import code_bits
from mvq.grouping import pack_lanes, to_subvectors, valid_lanes
from mvq.nn import eligible_layers
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask
from mvq.recipe import Recipe

PATTERN, D = Pattern(4, 16), 16
Q = PATTERN.kept_per(D)
ROUNDS = 5

Array = NDArray[np.float32]


class Network:
    """Packed rows of all layers.

    Attributes:
        rows: `(n_sub, Q)` kept values.
        used: `(n_sub, Q)` slots that hold a weight.
        layer: `(n_sub,)` number of the layer.
        masks: `(n_sub,)` mask id.
    """

    def __init__(self, model) -> None:
        rows, used, layer, masks = [], [], [], []
        for i, (name, module, role) in enumerate(eligible_layers(model)):
            weight = module.weight.detach().float().numpy()
            if weight.ndim != 4 or role == "depthwise":
                continue
            mask = magnitude_mask(weight, PATTERN, D, name=name)
            kept = mask & valid_lanes(weight.shape, D)
            rows.append(pack_lanes(to_subvectors(weight, D), kept, Q))
            used.append(np.arange(Q) < kept.sum(1, keepdims=True))
            layer.append(np.full(len(mask), i))
            masks.append(PATTERN.rank(mask)[:, 0])
        self.rows, self.used = np.concatenate(rows), np.concatenate(used)
        self.layer, self.masks = np.concatenate(layer), np.concatenate(masks)
        self.energy = float((self.rows.astype(np.float64) ** 2).sum())

    def bits(self, index_bits: int, n_codewords: int) -> int:
        """Indices of so many bits, mask ids, and codewords of Q codes."""
        return len(self.rows) * (index_bits + PATTERN.mask_bits) + 8 * Q * n_codewords

    def reference(self) -> int:
        """512 codewords, or fewer in small networks."""
        return min(512, 1 << (len(self.rows) // 16).bit_length() - 1)


def kmeans(rows: Array, used: NDArray[np.bool_], k: int, seed: int, weights: Array | None = None):
    """Masked k-means of packed rows."""
    return masked_kmeans(rows, used, k, weights=weights, seed=seed, max_iters=60)


def any_k(net: Network, seed: int, limit: int) -> tuple[float, int]:
    """Most codewords within the size."""
    widths = range(1, 17)
    k = max(min(1 << b, (limit - net.bits(b, 0)) // (8 * Q)) for b in widths if net.bits(b, (1 << b - 1) + 1) <= limit)
    return kmeans(net.rows, net.used, k, seed).sse, net.bits(code_bits(k), k)


def power_of_two(net: Network, seed: int, limit: int) -> tuple[float, int]:
    """Most codewords, a power of two, within the size."""
    k = max(1 << b for b in range(17) if net.bits(b, 1 << b) <= limit)
    return kmeans(net.rows, net.used, k, seed).sse, net.bits(code_bits(k), k)


def sign_split(net: Network, seed: int, limit: int) -> tuple[float, int]:
    """k-means on magnitudes; their codewords are never negative."""
    b = max(b for b in range(17) if net.bits(b + Q, 1 << b) <= limit)
    return kmeans(np.abs(net.rows), net.used, 1 << b, seed).sse, net.bits(b + Q, 1 << b)


def unit_rms(net: Network, seed: int, limit: int) -> tuple[float, int]:
    """A scale a layer; the error of a layer counts with its square."""
    ids = np.unique(net.layer)
    scale = np.ones(len(net.rows), np.float32)
    for i in ids:
        own = net.layer == i
        scale[own] = np.sqrt((net.rows[own][net.used[own]] ** 2).mean())
    k = max(1 << b for b in range(17) if net.bits(b, 1 << b) <= limit)
    weights = np.repeat(scale[:, None] ** 2, Q, 1)
    sse = kmeans(net.rows / scale[:, None], net.used, k, seed, weights).sse
    return sse, net.bits(code_bits(k), k) + 32 * len(ids)


def residual(net: Network, seed: int, limit: int) -> tuple[float, int]:
    """The best of the splits that fill the size."""
    splits = [(a, b) for a in range(2, 12) for b in range(2, a + 1) if net.bits(a + b, (1 << a) + (1 << b)) <= limit]
    most = max(a + b for a, b in splits)
    found = [
        (_two_codebooks(net, a, b, seed), net.bits(a + b, (1 << a) + (1 << b))) for a, b in splits if a + b == most
    ]
    return min(found)


def _two_codebooks(net: Network, a: int, b: int, seed: int) -> float:
    """Start one after the other, then assign to all sums and take means in turn."""
    first = kmeans(net.rows, net.used, 1 << a, seed)
    second = kmeans(net.rows - first.codebook[first.assignments], net.used, 1 << b, seed)
    one, two = first.codebook, second.codebook
    for _ in range(ROUNDS):
        sums = (one[:, None] + two[None]).reshape(-1, Q)
        labels, _ = assign(net.rows, net.used, sums)
        i, j = labels // len(two), labels % len(two)
        one = _means(net.rows - two[j], net.used, i, one)
        two = _means(net.rows - one[i], net.used, j, two)
    sums = (one[:, None] + two[None]).reshape(-1, Q)
    return float(assign(net.rows, net.used, sums)[1].astype(np.float64).sum())


def _means(rows: Array, used: NDArray[np.bool_], labels: NDArray, former: Array) -> Array:
    total, count = np.zeros(former.shape), np.zeros(former.shape)
    np.add.at(total, labels, rows * used)
    np.add.at(count, labels, used)
    return np.where(count > 0, total / np.maximum(count, 1), former).astype(np.float32)


def entropy(labels: NDArray) -> float:
    """Empirical entropy in bits a symbol."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log2(share)).sum())


def entropies(net: Network, seed: int) -> dict[str, float]:
    """Bits a subvector. With a model a layer, its counts are not paid for, which flatters small layers."""
    labels = kmeans(net.rows, net.used, net.reference(), seed).assignments
    by_layer = sum(
        entropy(labels[net.layer == i]) * (net.layer == i).sum() for i in np.unique(net.layer)
    ) / len(labels)  # fmt: skip
    return {"index": entropy(labels), "index_by_layer": by_layer, "mask": entropy(net.masks)}


LEVERS: dict[str, Callable[[Network, int, int], tuple[float, int]]] = {
    "power_of_two": power_of_two,
    "any_k": any_k,
    "sign_split": sign_split,
    "unit_rms": unit_rms,
    "residual": residual,
}


def measure(name: str, net: Network, seeds: int) -> list[dict[str, object]]:
    """One row a lever and size."""
    k, rows = net.reference(), []
    b = code_bits(k)
    limits = {"reference": net.bits(b, k), "below_next": net.bits(b + 1, 3 * k // 2)}
    jobs = [("reference", lever) for lever in LEVERS] + [("below_next", "power_of_two"), ("below_next", "any_k")]
    base: dict[str, float] = {}
    for size, lever in jobs:
        runs = [LEVERS[lever](net, seed, limits[size]) for seed in range(seeds)]
        error = statistics.median(sse for sse, _ in runs) / net.energy
        base.setdefault(size, error)
        rows.append(_row(name, net, size, lever, limits[size], runs[0][1], error, base[size]))
    found = entropies(net, 0)
    for what, fixed in (("index", b), ("index_by_layer", b), ("mask", PATTERN.mask_bits)):
        saved = len(net.rows) * (fixed - found[what])
        row = _row(
            name, net, "reference", f"entropy_{what}", limits["reference"], 0, base["reference"], base["reference"]
        )
        rows.append(
            row
            | {
                "bits": round(limits["reference"] - saved),
                "bits_saved_percent": round(100 * float(saved) / limits["reference"], 2),
            }
        )
    return rows


def _row(
    name: str, net: Network, size: str, lever: str, limit: int, bits: int, error: float, base: float
) -> dict[str, object]:
    return {
        "network": name,
        "n_sub": len(net.rows),
        "k": net.reference(),
        "size": size,
        "lever": lever,
        "bits_limit": limit,
        "bits": bits,
        "bits_saved_percent": "",
        "kept_error": round(error, 5),
        "change_percent": round(100 * (error / base - 1), 2),
        "mvq": mvq.__version__,
    }


def sparse_trained(name: str, steps: int):
    """The network after some steps of SR-STE."""
    from benchmarks.networks import cifar_resnet
    from mvq.train import Distillation, sparse_train

    model = REGISTRY[name].build()
    recipe = Recipe(pattern="4:16", d=D, classifier="int8")
    loader = cifar_resnet.train_all(batch_size=64)
    objective = Distillation(REGISTRY[name].build(), weight=1.0)
    sparse_train(model, recipe, loader, method="sr-ste", objective=objective, epochs=99, max_steps=steps)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=list(REGISTRY), default=["resnet20", "resnet32", "mobilenet_v2"]
    )
    parser.add_argument("--sparse-steps", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "levers.csv")
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        rows += measure(name, Network(REGISTRY[name].build()), args.seeds)
        if args.sparse_steps and name.startswith("resnet"):
            rows += measure(f"{name}_sparse", Network(sparse_trained(name, args.sparse_steps)), args.seeds)
        write_csv(args.output, rows)
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
