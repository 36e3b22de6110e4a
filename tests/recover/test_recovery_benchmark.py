"""The measuring script: which rows there are, and that rows already measured are kept."""

import torch
from benchmarks.networks import Adapter
from recover_nets import images, residual

import mvq
from benchmarks import recovery


def adapter():
    x = images(24)
    labels = torch.arange(24) % 10
    return Adapter(
        name="mobilenet_v2",
        task="classification",
        build=residual,
        data=lambda split="val", limit=None: [(x[:limit], labels[:limit])],
        input_shape=(3, 12, 12),
        baseline={"top1": 10.0},
    )


def test_each_row_adds_one_part():
    assert recovery.steps("A") == [(), ("batchnorm",), ("batchnorm", "reconstruct")]
    for case in recovery.CASES:
        for fewer, more in zip(recovery.steps(case), recovery.steps(case)[1:], strict=False):
            assert more[:-1] == fewer
    assert set(recovery.steps("D")[-1]) == set(mvq.recover.PARTS)


def test_rows_are_written_once_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recovery.REGISTRY, "mobilenet_v2", adapter())
    path = tmp_path / "rows.csv"
    config = '{"images": 24, "prune_steps": 2, "prune_epochs": 1, "block_steps": 2, "distill_epochs": 1}'
    arguments = ["--networks", "mobilenet_v2", "--recipes", "12x", "--full-only", "--config", config]
    recovery.main([*arguments, "--limit", "8", "--output", str(path)])
    rows = recovery.read_rows(path)
    assert {key[2] for key in rows} == set(recovery.CASES)
    for row in rows.values():
        assert 0 <= float(row["agreement_percent"]) <= 100
        assert int(row["n"]) == 8
        assert int(row["compressed_bits"]) > 0
    before = path.read_bytes()
    recovery.main([*arguments, "--limit", "8", "--output", str(path)])
    assert path.read_bytes() == before
    assert capsys.readouterr().err.endswith("mobilenet_v2: already measured\n")
