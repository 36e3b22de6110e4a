"""Time and memory to compress all convolutions of ResNet-50: `prune_` + `cluster_` to convergence + `save`.

    uv run python -m benchmarks.bench_resnet50

Memory is the resident peak of the process above what it held once the libraries were imported and their loops
compiled, so
it includes the model itself. Weights are torchvision's random initialisation: the cost does not depend on their values
much, and no download is needed. Compile time of the loops (once a machine) is measured apart.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import tempfile
import time
from pathlib import Path

import numba
import torch
import torchvision

import mvq
from benchmarks.table import RESULTS, write_csv

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes of a memory field of this process (Linux)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def compress_once(recipe: mvq.Recipe, folder: Path) -> dict[str, float]:
    """Seconds of each step, and the peak memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier must not hide what this run takes
    _CLEAR.write_text("5")  # resets the peak
    before = resident("VmRSS")
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    seconds = {}
    start = time.perf_counter()
    mvq.prune_(model, recipe)
    seconds["prune_s"] = time.perf_counter() - start
    mvq.cluster_(model, recipe)
    seconds["cluster_s"] = time.perf_counter() - start - seconds["prune_s"]
    file_bytes = mvq.save(model, folder / "resnet50.mvq")
    seconds["total_s"] = time.perf_counter() - start
    seconds["save_s"] = seconds["total_s"] - seconds["prune_s"] - seconds["cluster_s"]
    model_bytes = 4 * sum(p.numel() for p in torchvision.models.resnet50().parameters())
    return {
        **seconds,
        "peak_MB": (resident("VmHWM") - before) / 1e6,
        "peak_over_model": (resident("VmHWM") - before) / model_bytes,
        "file_bytes": file_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mvq-22x")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "resnet50.csv")
    args = parser.parse_args()
    recipe = mvq.Recipe.preset(args.recipe)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        warm_up = torchvision.models.resnet18(num_classes=16)
        mvq.cluster_(mvq.prune_(warm_up, recipe), recipe)
        mvq.save(warm_up, Path(folder) / "warm.mvq")
        del warm_up
        print(
            f"warm-up with ResNet-18, compilation included where it was not cached: {time.perf_counter() - start:.1f} s"
        )
        runs = [compress_once(recipe, Path(folder)) for _ in range(args.repeats)]
    row: dict[str, object] = {"recipe": args.recipe, "repeats": args.repeats}
    for key in runs[0]:
        values = [run[key] for run in runs]
        row[key] = round(statistics.median(values), 3)
        row[f"{key}_max"] = round(max(values), 3)
    row |= {"cores": numba.get_num_threads(), "torch": torch.__version__, "mvq": mvq.__version__}
    print(row)
    write_csv(args.output, [row])


if __name__ == "__main__":
    main()
