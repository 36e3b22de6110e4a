"""Clustering speed: masked k-means against PyTorch, faiss and scikit-learn, side by side in one run.

    uv run --group bench python -m benchmarks.bench_kmeans

Every method starts from the same codebook of random rows and runs the same number of iterations on all cores;
ours includes the checks of the input and the one-time grouping. Masked methods solve the masked problem;
faiss and scikit-learn have no masks and cluster the pruned rows as dense vectors, which is less work per
codeword to decide but d instead of Q multiply-adds.

* `torch` is masked k-means in two matrix products, `-2 w.C^T + m.(C^2)^T`, by chunks of rows; the chunk size
  is the fastest of several, found anew for every shape.
* `ideal_ms` is the time of all `n_sub * Q * k` multiply-adds at the machine's measured float32 matrix-product
  rate. Being faster than it is possible, because codewords that cannot be nearest are skipped without loss.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

import mvq
from benchmarks.table import RESULTS, write_csv
from mvq.cluster import masked_kmeans, reference
from mvq.grouping import pack_lanes
from mvq.patterns import Pattern

D, PATTERN = 16, Pattern(4, 16)
Q = PATTERN.kept_per(D)


def problem(n_sub: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian subvectors pruned by magnitude."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n_sub, D), dtype=np.float32)
    mask = PATTERN.top_mask(np.abs(w))
    return w * mask, mask


def torch_kmeans(w: torch.Tensor, mask: torch.Tensor, codebook: torch.Tensor, n_iters: int, chunk: int) -> torch.Tensor:
    """Tuned masked k-means in two matrix products; returns the labels."""
    k = len(codebook)
    labels = torch.empty(len(w), dtype=torch.long)
    buffer = torch.empty(chunk, k)
    for iteration in range(n_iters + 1):
        minus_two, square = (-2 * codebook).T.contiguous(), (codebook * codebook).T.contiguous()
        for low in range(0, len(w), chunk):
            part = buffer[: min(chunk, len(w) - low)]
            torch.mm(w[low : low + chunk], minus_two, out=part)
            part.addmm_(mask[low : low + chunk], square)
            torch.argmin(part, dim=1, out=labels[low : low + chunk])
        if iteration < n_iters:
            sums = torch.zeros(k, D).index_add_(0, labels, w)
            counts = torch.zeros(k, D).index_add_(0, labels, mask)
            codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)
    return labels


def tune_chunk(w: torch.Tensor, mask: torch.Tensor, codebook: torch.Tensor) -> int:
    """Fastest of several chunk sizes."""
    part = slice(0, min(len(w), 65536))
    times = {}
    for chunk in (512, 1024, 2048, 4096, 8192, 16384):
        torch_kmeans(w[part], mask[part], codebook, 0, chunk)
        start = time.perf_counter()
        torch_kmeans(w[part], mask[part], codebook, 2, chunk)
        times[chunk] = time.perf_counter() - start
    return min(times, key=times.__getitem__)


def peak_gfma() -> float:
    """Multiply-adds a second (1e9) of a large float32 matrix product: the machine's practical peak."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    rates = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        rates.append(2048**3 / (time.perf_counter() - start) / 1e9)
    return max(rates)


def interleave(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run; one of each in turn, so that drift of the machine touches all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def unmasked_runs(w: np.ndarray, init: np.ndarray, k: int, n_iters: int) -> dict[str, Callable[[], object]]:
    """Faiss and scikit-learn on the pruned rows as dense vectors."""
    import faiss
    from sklearn.cluster import KMeans

    faiss.omp_set_num_threads(numba.get_num_threads())

    def run_faiss() -> object:
        km = faiss.Kmeans(D, k, niter=n_iters, max_points_per_centroid=1 << 30, min_points_per_centroid=1)
        return km.train(w, init_centroids=init)

    def run_sklearn() -> object:
        return KMeans(k, init=init, n_init=1, max_iter=n_iters, tol=0, algorithm="lloyd").fit(w)

    return {"faiss": run_faiss, "sklearn": run_sklearn}


def check(w: np.ndarray, mask: np.ndarray, init: np.ndarray, n_iters: int, chunk: int) -> dict[str, float]:
    """Relative difference of our error from that of the two-product PyTorch run, both evaluated in
    float64."""
    tw, tm = torch.from_numpy(w), torch.from_numpy(mask.astype(np.float32))
    labels = torch_kmeans(tw, tm, torch.from_numpy(init), n_iters, chunk).numpy()
    sums, counts = np.zeros(init.shape), np.zeros(init.shape)
    np.add.at(sums, labels, w)
    np.add.at(counts, labels, mask)
    optimal = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    theirs = float((mask * (w - optimal[labels]) ** 2).sum())
    ours = masked_kmeans(w, mask, len(init), init=init, max_iters=n_iters, tol=0)
    sums[:], counts[:] = 0, 0
    np.add.at(sums, ours.assignments, w)
    np.add.at(counts, ours.assignments, mask)
    optimal = np.where(counts > 0, sums / np.maximum(counts, 1), 0)
    return {"sse_vs_torch": float((mask * (w - optimal[ours.assignments]) ** 2).sum()) / theirs - 1}


def check_reference(n_sub: int, k: int, n_iters: int) -> float:
    """Relative difference of our error from the NumPy float64 reference, where that is affordable."""
    w, mask = problem(n_sub)
    init = w[np.random.default_rng(1).choice(n_sub, k, replace=False)]
    _, _, sse = reference.lloyd(w, mask, init, n_iters)
    return masked_kmeans(w, mask, k, init=init, max_iters=n_iters, tol=0).sse / sse - 1


def measure(n_sub: int, k: int, n_iters: int, repeats: int, peak: float) -> dict[str, object]:
    """One row of the table."""
    w, mask = problem(n_sub)
    start_rows = np.random.default_rng(1).choice(n_sub, k, replace=False)
    init = w[start_rows].copy()
    packed_init = pack_lanes(w, mask, Q)[start_rows]
    tw, tm = torch.from_numpy(w), torch.from_numpy(mask.astype(np.float32))
    chunk = tune_chunk(tw, tm, torch.from_numpy(init))
    runs: dict[str, Callable[[], object]] = {
        "masked": lambda: masked_kmeans(w, mask, k, init=init, max_iters=n_iters, tol=0),
        "packed": lambda: masked_kmeans(w, mask, k, codewords="packed", init=packed_init, max_iters=n_iters, tol=0),
        "torch": lambda: torch_kmeans(tw, tm, torch.from_numpy(init), n_iters, chunk),
        **unmasked_runs(w, init, k, n_iters),
    }
    for name in ("masked", "packed"):
        runs[name]()
    times = interleave(runs, repeats)
    row: dict[str, object] = {
        "n_sub": n_sub,
        "k": k,
        "iterations": n_iters,
        "repeats": repeats,
        "torch_chunk": chunk,
    }
    ideal = n_sub * Q * k * (n_iters + 1) / peak / 1e6
    for name, values in times.items():
        row[f"{name}_ms"] = round(statistics.median(values), 2)
        row[f"{name}_spread_ms"] = round(max(values) - min(values), 2)
    row["ideal_ms"] = round(ideal, 2)
    row["share_of_peak"] = round(ideal / statistics.median(times["masked"]), 3)
    for other in ("torch", "faiss", "sklearn"):
        ratios = [b / a for a, b in zip(times["masked"], times[other], strict=True)]
        row[f"speedup_vs_{other}"] = round(statistics.median(ratios), 2)
        row[f"speedup_vs_{other}_min"] = round(min(ratios), 2)
    row["packed_over_masked"] = round(
        statistics.median(b / a for a, b in zip(times["masked"], times["packed"], strict=True)), 3
    )
    row.update({name: f"{value:.2e}" for name, value in check(w, mask, init, n_iters, chunk).items()})
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-sub", type=int, nargs="+", default=[2000, 5000, 10_000, 200_000, 700_000])
    parser.add_argument("--k", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "kmeans.csv")
    args = parser.parse_args()
    peak = peak_gfma()
    machine = {
        "cores": numba.get_num_threads(),
        "peak_gfma_per_s": round(peak, 1),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "mvq": mvq.__version__,
    }
    print(machine)
    print(
        f"relative SSE difference from the float64 reference, n_sub=20000, k=256: "
        f"{check_reference(20_000, 256, 10):.1e}"
    )
    rows = []
    for n_sub in args.n_sub:
        for k in args.k:
            rows.append({**measure(n_sub, k, args.iterations, args.repeats, peak), **machine})
            print({key: value for key, value in rows[-1].items() if key not in machine}, flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
