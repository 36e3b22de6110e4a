"""The measuring script: which rows there are, and that rows already measured are kept."""

import argparse
import itertools
from collections import Counter

import pytest
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
        training=lambda batch_size, seed: [(x, labels)],
    )


def test_each_row_adds_one_part():
    assert recovery.steps("A", ladder=True)[:2] == [(), ("batchnorm",)]
    for case in recovery.CASES:
        ladder = recovery.steps(case, ladder=True)
        assert all(more[:-1] == fewer for fewer, more in itertools.pairwise(ladder))
        assert recovery.steps(case, ladder=False) == [ladder[0], ladder[-1]]
    assert set(recovery.steps("D", ladder=True)[-1]) == set(mvq.recover.PARTS)


@pytest.mark.parametrize(("ladder", "recipes"), [(None, {"8x", "12x", "16x"}), (["12x"], {"12x"}), ([], set())])
def test_each_size_of_the_plan_has_rows_of_parts(monkeypatch, ladder, recipes):
    monkeypatch.setitem(recovery.REGISTRY, "mobilenet_v2", adapter())
    options = argparse.Namespace(
        config="{}", seed=0, epochs=0, recipes=None, cases=["D", "B"], limit=None, ladder=ladder
    )
    found = Counter((job.name, job.case) for job in recovery.jobs(options, "mobilenet_v2"))
    everything = len(mvq.recover.PARTS) + 1
    wanted = {("B", name): 2 for name in ("8x", "12x", "16x")}
    wanted |= {("D", name): everything if name in recipes else 2 for name in ("8x", "12x", "16x")}
    assert found == {(name, case): n for (case, name), n in wanted.items()}


def test_rows_are_written_once_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recovery.REGISTRY, "mobilenet_v2", adapter())
    monkeypatch.setattr(recovery, "MODELS", tmp_path / "models")
    path = tmp_path / "rows.csv"
    config = '{"images": 24, "prune_steps": 2, "prune_epochs": 1, "block_steps": 2, "distill_epochs": 1}'
    arguments = ["--networks", "mobilenet_v2", "--recipes", "12x", "--ladder", "--config", config]
    arguments += ["--epochs", "1", "--limit", "8", "--output", str(path)]
    recovery.main(arguments)
    rows = recovery.read_rows(path)
    assert {key[2] for key in rows} == set(recovery.CASES)
    assert sum(key[3].endswith("+labels") for key in rows) == len(recovery.CASES)
    for row in rows.values():
        assert 0 <= float(row["agreement_percent"]) <= 100
        assert int(row["n"]) == 8
        assert int(row["compressed_bits"]) > 0
    before = path.read_bytes()
    recovery.main(arguments)
    assert path.read_bytes() == before
    monkeypatch.setattr(recovery, "compress", None)
    path.unlink()
    recovery.main(arguments)
    again = recovery.read_rows(path)
    assert {key: row["percent"] for key, row in again.items()} == {key: row["percent"] for key, row in rows.items()}
    assert "mobilenet_v2: already measured\n" in capsys.readouterr().err


def test_a_network_has_its_plan(tmp_path, monkeypatch):
    config = mvq.recover.RecoverConfig(images=24, prune_steps=2, block_steps=2, distill_epochs=1)
    monkeypatch.setitem(recovery.PLANS, "mobilenet_v2", recovery.Plan(("16x",), 0, config))
    monkeypatch.setitem(recovery.REGISTRY, "mobilenet_v2", adapter())
    monkeypatch.setattr(recovery, "MODELS", tmp_path / "models")
    arguments = ["--networks", "mobilenet_v2", "--cases", "A", "--limit", "8", "--output"]
    recovery.main([*arguments, str(tmp_path / "plan.csv")])
    rows = recovery.read_rows(tmp_path / "plan.csv")
    assert {key[:4] for key in rows} == {
        ("mobilenet_v2", "16x", "A", parts) for parts in ("none", "batchnorm+reconstruct+distill")
    }
    assert {row["images"] for row in rows.values()} == {"24"}
    recovery.main([*arguments, str(tmp_path / "asked.csv"), "--config", '{"images": 16}', "--epochs", "1"])
    asked = recovery.read_rows(tmp_path / "asked.csv").values()
    assert {row["images"] for row in asked} == {"16"}
    assert any(row["parts"].endswith("+labels") for row in asked)


def test_each_way_to_allocate_is_a_case_of_its_own(tmp_path, monkeypatch):
    found, allocate = [], recovery.allocate_untrained

    def spy(*arguments, trust, max_macs, **options):
        found.append((trust, max_macs))
        return allocate(*arguments, trust=trust, max_macs=max_macs, **options)

    monkeypatch.setitem(recovery.REGISTRY, "mobilenet_v2", adapter())
    monkeypatch.setattr(recovery, "MODELS", tmp_path / "models")
    monkeypatch.setattr(recovery, "allocate_untrained", spy)
    path = tmp_path / "rows.csv"
    cases = ["ours", "ours, trust 0", "ours, trust 1", "ours, macs 0.5"]
    arguments = ["--networks", "mobilenet_v2", "--recipes", "12x", "--cases", *cases]
    config = '{"images": 24, "prune_steps": 2, "block_steps": 2, "distill_epochs": 1}'
    recovery.main([*arguments, "--config", config, "--epochs", "0", "--limit", "8", "--output", str(path)])
    assert set(found) == {(recovery.TRUST, None), (0.0, None), (1.0, None), (recovery.TRUST, 0.5)}
    rows = recovery.read_rows(path)
    assert {key[2] for key in rows} == set(cases)
    assert len({row["config_hash"] for row in rows.values()}) == 2 * len(cases)
    left = {case: {float(row["macs_percent"]) for row in rows.values() if row["case"] == case} for case in cases}
    assert max(left["ours, macs 0.5"]) < 70 < min(left["ours"])
