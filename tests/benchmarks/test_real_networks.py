"""The benchmark of real networks: its arithmetic on a small model, and one whole run on ResNet-20."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from benchmarks.networks import REGISTRY
from torch import nn

import mvq
from benchmarks import real_networks
from mvq.nn import extract
from mvq.sizes import sizes
from mvq.tasks import Result


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 64, 3),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(64, 70, 1),
        nn.Flatten(),
        nn.Linear(70, 32),
    )


@pytest.mark.parametrize("name", ["16x", "22x"])
@pytest.mark.parametrize(
    "changes", [{}, {"scope": "network"}, {"rows_per_codeword": 16}, {"classifier": "int8", "scope": "network"}]
)
def test_expected_ratio_is_that_of_the_compressed_model(name, changes):
    recipe = dataclasses.replace(real_networks.RECIPES[name][1], n_codewords=64, max_iters=3, **changes)
    net = model()
    expected = real_networks.expected_ratio(net, recipe)
    mvq.prune_(net, recipe)
    mvq.cluster_(net, recipe)
    assert expected == pytest.approx(sizes(extract(net))["compressed_convs"].ratio)


@pytest.mark.parametrize(("name", "target"), [("16x", 16), ("22x", 22)])
def test_recipe_comes_near_the_target(name, target):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *(nn.Conv2d(256, 256, 3) for _ in range(2)))
    recipe = real_networks.recipe_for("other", name, net, seed=3)
    assert real_networks.expected_ratio(net, recipe) == pytest.approx(target, rel=0.15)
    assert recipe.seed == 3
    for n_codewords in (recipe.n_codewords // 2, recipe.n_codewords * 2):
        other = real_networks.expected_ratio(net, dataclasses.replace(recipe, n_codewords=n_codewords))
        assert abs(np.log(other / target)) >= abs(np.log(real_networks.expected_ratio(net, recipe) / target))


def test_errors_by_direct_computation():
    net = model()
    recipe = mvq.Recipe(pattern="4:16", d=16, n_codewords=16, max_iters=5)
    original = {str(i): net[i].weight.detach().numpy().copy() for i in (0, 2, 3, 4, 6)}
    mvq.prune_(net, recipe)
    masks = {i: net[int(i)].weight.detach().numpy() != 0 for i in ("2", "4", "6")}
    mvq.cluster_(net, recipe)
    decoded = {i: net[int(i)].weight.detach().numpy() for i in masks}
    masked, energy, total = real_networks.errors(extract(net), original)
    difference = {i: (original[i].astype(np.float64) - decoded[i]) ** 2 for i in masks}
    assert masked == pytest.approx(sum(difference[i][masks[i]].sum() for i in masks))
    assert total == pytest.approx(sum(d.sum() for d in difference.values()))
    assert energy == pytest.approx(sum((original[i][masks[i]].astype(np.float64) ** 2).sum() for i in masks))
    assert 0 < masked < total


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """A network and a run that cost nothing; gives the recorded jobs and the command's arguments."""
    adapter = dataclasses.replace(REGISTRY["resnet20"], build=lambda: nn.Sequential(nn.Conv2d(3, 4, 1), *convs()))
    monkeypatch.setitem(real_networks.REGISTRY, "resnet20", adapter)
    jobs = []

    def run(job, fp32, folder):
        jobs.append((job.name, fp32.value))
        row = dict.fromkeys(real_networks.COLUMNS, "0")
        row |= {"network": job.adapter.name, "recipe": job.name, "task": "classification", "metric": "top1", "n": 9}
        row |= {"limit": str(job.limit or ""), "fp32_percent": fp32.value, "version": mvq.__version__}
        return row | {"config_hash": job.config_hash}

    def convs():
        return [nn.Conv2d(64, 64, 3) for _ in range(3)]

    monkeypatch.setattr(real_networks, "run", run)
    monkeypatch.setattr(
        real_networks.Adapter, "evaluate", lambda *a, **k: Result("classification", "top1", 91.5, 9), raising=True
    )
    output = tmp_path / "r.csv"
    return jobs, output, ["--networks", "resnet20", "--output", str(output), "--models", str(tmp_path)]


def test_rows_are_kept_unless_the_configuration_changes(stubbed, capsys):
    jobs, output, arguments = stubbed
    real_networks.main(arguments)
    assert jobs == [("16x", 91.5), ("22x", 91.5)]
    real_networks.main(arguments)
    assert len(jobs) == 2
    assert "[1/2] resnet20 16x: already measured" in capsys.readouterr().err
    real_networks.main([*arguments, "--recipes", "22x", "--seed", "1"])
    assert len(jobs) == 3
    real_networks.main([*arguments, "--recipes", "16x", "--limit", "5"])
    assert len(jobs) == 4
    real_networks.main([*arguments, "--recipes", "16x", "--force"])
    assert len(jobs) == 5
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["recipe"], r["limit"]) for r in rows] == [("16x", ""), ("16x", "5"), ("22x", "")]
    assert tuple(rows[0]) == real_networks.COLUMNS


def test_resnet20_through_a_file_and_a_fresh_process(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MVQ_DATA", str(data_root))
    output = tmp_path / "r.csv"
    real_networks.main(
        [
            *("--networks", "resnet20", "--recipes", "16x", "--limit", "100"),
            *("--output", str(output), "--models", str(tmp_path)),
        ]
    )
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["n"], row["task"], row["metric"]) == ("100", "classification", "top1")
    assert float(row["fp32_percent"]) >= 85
    assert float(row["compressed_percent"]) >= 15
    assert float(row["compressed_convs_ratio"]) == pytest.approx(16, rel=0.1)
    ratios = [float(row[f"{c}_ratio"]) for c in real_networks.CONVENTIONS]
    assert ratios == sorted(ratios, reverse=True)
    assert int(row["on_disk_bytes"]) == (tmp_path / "resnet20-16x.mvq").stat().st_size
    assert 0.01 < float(row["masked_error_relative"]) < 0.1
    net = REGISTRY["resnet20"].build()
    mvq.load_into(net, tmp_path / "resnet20-16x.mvq", dense=True)
    here = REGISTRY["resnet20"].evaluate(net.eval(), 100)
    assert float(row["compressed_percent"]) == pytest.approx(here.value, abs=1e-3)
