"""Networks that rivals published in compressed form: what they say of them, and what we count and measure.

    MVQ_DATA=... uv run --group bench python -m benchmarks.published

Codes, codebooks and weights are the published ones (`networks/vq_reference.py`). `published_*` is quoted from the
authors' repositories: megabytes are 2^20 bytes, the accuracy is that on all 50,000 validation images of ImageNet.
`ours_bytes_formula` follows the conventions of `mvq.sizes` for a whole model: `ceil(log2 K)` bits a code and whole
bytes a layer, float16 codebooks as published, everything else float32: the first convolution, biases, batch norm. Batch
norm is two values a channel, as its statistics are folded in by the authors, here and in the dense network `ratio`
compares with. Accuracies are measured on the 900 validation images at hand, and so are no match for the quoted ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.networks import REGISTRY
from benchmarks.networks.adapter import data_file
from benchmarks.table import RESULTS, write_csv
from mvq.compressed import code_bits


@dataclass(frozen=True)
class Published:
    """What the authors say of a network.

    Attributes:
        method: `PQF` or `BGD`.
        file: its name without the ending.
        mb: size in 2^20 bytes.
        top1: on the full validation set, in percent.
    """

    method: str
    file: str
    mb: float
    top1: float


NETWORKS: dict[str, Published] = {
    "pqf_resnet18": Published("PQF", "pqf_resnet18_small", 1.54, 66.74),
    "pqf_resnet18_large": Published("PQF", "pqf_resnet18_large", 1.03, 63.33),
    "bgd_resnet18": Published("BGD", "bgd_resnet18_small", 1.54, 65.81),
    "bgd_resnet18_large": Published("BGD", "bgd_resnet18_large", 1.03, 61.18),
    "pqf_resnet50": Published("PQF", "pqf_resnet50_large", 3.19, 72.18),
    "bgd_resnet50": Published("BGD", "bgd_resnet50_large", 3.19, 68.21),
}


def stored_bytes(stored: Mapping[str, torch.Tensor]) -> int:
    """Bytes of a network with `<layer>.codes`, `<layer>.codebook` and other tensors, by the formula above."""
    total = 0
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if part == "codes":
            bits = tensor.numel() * code_bits(len(stored[f"{layer}.codebook"]))
        else:
            bits = tensor.numel() * (16 if part == "codebook" else 32)
        total += -(-bits // 8)
    return total


def dense_bytes(stored: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the same network in float32."""
    n = 0
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if part == "codes":
            n += tensor.numel() * stored[f"{layer}.codebook"].shape[1]
        elif part != "codebook":
            n += tensor.numel()
    return 4 * n


def row(name: str, *, limit: int | None = None) -> dict[str, object]:
    """One line of the table."""
    published = NETWORKS[name]
    stored = load_file(data_file(f"vq_reference/{published.file}.safetensors"))
    result = REGISTRY[name].evaluate(REGISTRY[name].build(), limit)
    return {
        "network": published.file.partition("_")[2],
        "method": published.method,
        "published_mb": published.mb,
        "published_top1_full_set": published.top1,
        "ours_bytes_formula": stored_bytes(stored),
        "ratio": round(dense_bytes(stored) / stored_bytes(stored), 2),
        "measured_top1": round(result.value, 2),
        "measured_top5": round(result.extra["top5"], 2),
        "n": result.n,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--limit", type=int, help="first images only")
    parser.add_argument("--output", type=Path, default=RESULTS / "published_vq.csv")
    args = parser.parse_args(arguments)
    rows = []
    for name in args.networks:
        rows.append(row(name, limit=args.limit))
        print(rows[-1], flush=True)
    write_csv(args.output, rows)


if __name__ == "__main__":
    main()
