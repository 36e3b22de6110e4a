"""Loading speed of a `.mvq` file against a plain copy of the same dense weights.

    uv run python -m benchmarks.bench_decode

A ResNet-50 with every convolution but the first compressed at 4:16, d = 16, 512 codewords (23.4 M weights), first
convolution and classifier int8. Masks are those of the largest weights of the random initialisation; assignments and
codebooks are random, which costs the decoder no less than clustered ones. All steps take turns within every repeat:

* `load`: open the file, check every digest, decode all layers to float32 and read all other tensors;
* `decode`: all layers once more with the file's streams in memory;
* `layer by layer`: open the file anew and ask for one layer after the other;
* `read`: the whole file as compressed data, nothing decoded;
* `copy`: `torch.Tensor.clone` of all dense weights and tensors, on all threads.

Every step allocates its results anew and frees those of the step before.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import torchvision

import mvq
from benchmarks.table import RESULTS, write_csv
from mvq.compressed import Codebook, CompressedModel, Int8Layer, VQLayer
from mvq.format import bits, decode, open_file, write
from mvq.grouping import to_subvectors
from mvq.patterns import Pattern

PATTERN, D, K = Pattern(4, 16), 16, 512


def compress(seed: int = 0) -> CompressedModel:
    """ResNet-50 of random initialisation, stored as real ones are."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = torchvision.models.resnet50()
    layers: list[Any] = []
    codebooks = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        weight = module.weight.detach().numpy()
        if name in ("conv1", "fc"):
            role = "first_conv" if name == "conv1" else "classifier"
            scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
            codes = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
            layers.append(Int8Layer(name, "conv" if weight.ndim == 4 else "linear", role, codes, scales))
            continue
        mask_ids = PATTERN.rank(PATTERN.top_mask(np.abs(to_subvectors(weight, D)))).astype(np.uint16)
        assignments = rng.integers(0, K, len(mask_ids)).astype(np.uint16)
        shape = tuple(weight.shape)
        settings = ("conv", "conv", shape, PATTERN, D, "masked", name, K)
        layers.append(VQLayer(name, *settings, assignments, mask_ids, 1.0, 2.0))
        codebooks[name] = Codebook(rng.integers(-128, 128, (K, D)).astype(np.int8), 1e-3)
    weights = {f"{layer.name}.weight" for layer in layers}
    tensors = {n: t.numpy() for n, t in model.state_dict().items() if n not in weights}
    return CompressedModel(mvq.Recipe(), tuple(layers), codebooks, tensors)


def load(path: Path) -> object:
    with open_file(path) as file:
        weights = file.dense_weights()
        return weights, {name: file.tensor(name) for name in file.tensor_names}


def layer_by_layer(path: Path) -> object:
    with open_file(path) as file:
        return [file.dense_weight(layer.name) for layer in file.layers]


def read(path: Path) -> object:
    with open_file(path) as file:
        return file.read()


def compile_ms() -> float:
    """Milliseconds to compile the kernels a load needs; cached on disk, they are loaded instead."""
    start = time.perf_counter()
    data = np.zeros(1, np.uint8)
    data.flags.writeable = False
    ids, table = np.zeros(1, np.uint16), np.zeros((1, 1), np.float32)
    numba.njit(nogil=True)(bits._unpack.py_func)(data, 8, ids)
    positions = np.zeros((1, 1), np.uint8)
    numba.njit(nogil=True)(decode._decode_units.py_func)(ids, ids, table, positions, 1, 1, False, 0, 1, table)
    return 1e3 * (time.perf_counter() - start)


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every step in every repeat."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            result = step()
            times[name].append(1e3 * (time.perf_counter() - start))
            del result
    return times


def report(times: dict[str, list[float]], n_bytes: int, jit_ms: float) -> list[dict[str, object]]:
    copy = statistics.median(times["copy"])
    machine = {
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "torch": torch.__version__,
    }
    rows = []
    print(f"{'step':<16}{'median ms':>11}{'min ms':>9}{'max ms':>9}{'GB/s':>8}{'copy / step':>13}")
    for name, values in times.items():
        median = statistics.median(values)
        row: dict[str, object] = {
            "step": name,
            "median_ms": round(median, 2),
            "min_ms": round(min(values), 2),
            "max_ms": round(max(values), 2),
            "repeats": len(values),
            "dense_gb_per_s": round(n_bytes / median / 1e6, 2),
            "copy_time_over_step_time": round(copy / median, 3),
            "compile_ms": round(jit_ms) if name == "load" else "",
        }
        rows.append(row | machine)
        print(
            f"{name:<16}{median:>11.1f}{min(values):>9.1f}{max(values):>9.1f}{n_bytes / median / 1e6:>8.2f}"
            f"{copy / median:>13.2f}"
        )
    print(f"compilation of the kernels, once and then cached on disk: {jit_ms:.0f} ms")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode.csv")
    args = parser.parse_args()
    torch.set_num_threads(numba.get_num_threads())
    model = compress()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "resnet50.mvq"
        file_bytes = write(model, path)
        with open_file(path) as file:
            dense = [torch.from_numpy(w) for w in file.dense_weights().values()]
            dense += [torch.from_numpy(file.tensor(name)) for name in file.tensor_names]
            n_bytes = sum(t.nbytes for t in dense)
            for layer in model.vq_layers[:3]:
                expected = layer.dense(model.codebooks[layer.codebook])
                assert file.dense_weight(layer.name).tobytes() == expected.tobytes()
            steps: dict[str, Callable[[], object]] = {
                "load": lambda: load(path),
                "decode": file.dense_weights,
                "layer by layer": lambda: layer_by_layer(path),
                "read": lambda: read(path),
                "copy": lambda: [tensor.clone() for tensor in dense],
            }
            measure(steps, 2)
            print(f"{file_bytes / 1e6:.2f} MB file, {n_bytes / 1e6:.2f} MB dense")
            rows = report(measure(steps, args.repeats), n_bytes, compile_ms())
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
