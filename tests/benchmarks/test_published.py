"""Published networks: the size formula by hand, and the files themselves."""

import csv

import pytest
import torch
from benchmarks.networks import REGISTRY
from benchmarks.networks.adapter import data_file
from safetensors.torch import load_file

from benchmarks import published


def test_sizes_by_hand() -> None:
    stored = {
        "a.codebook": torch.zeros(64, 9, dtype=torch.float16),
        "a.codes": torch.zeros(3, 7, dtype=torch.uint8),
        "bn.weight": torch.zeros(5, dtype=torch.float16),
    }
    # 21 codes of 6 bits are 126 bits: 16 bytes
    assert published.stored_bytes(stored) == 2 * 64 * 9 + 16 + 4 * 5
    assert published.dense_bytes(stored) == 4 * (21 * 9 + 5)


@pytest.mark.parametrize("name", published.NETWORKS)
def test_published_sizes_come_out(name: str, data_root, monkeypatch) -> None:
    monkeypatch.setenv("MVQ_DATA", str(data_root))
    network = published.NETWORKS[name]
    stored = load_file(data_file(f"vq_reference/{network.file}.safetensors"))
    megabytes = published.stored_bytes(stored) / 2**20
    # BGD rounds k down once more in three small layers of ResNet-50, and prints PQF's figure
    assert megabytes == pytest.approx(network.mb, abs=0.006)
    assert published.dense_bytes(stored) == 4 * sum(p.numel() for p in REGISTRY[name].build().parameters())


def test_one_network_on_a_few_images(data_root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MVQ_DATA", str(data_root))
    output = tmp_path / "p.csv"
    published.main(["--networks", "pqf_resnet18", "--limit", "20", "--output", str(output)])
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == [
        *("network", "method", "published_mb", "published_top1_full_set"),
        *("ours_bytes_formula", "ratio", "measured_top1", "measured_top5", "n"),
    ]
    assert (row["network"], row["method"], row["ours_bytes_formula"], row["n"]) == (
        *("resnet18_small", "PQF", "1615904", "20"),
    )
    assert float(row["measured_top1"]) >= 50
    assert "resnet18_small" in capsys.readouterr().out
