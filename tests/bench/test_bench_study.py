from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvq.bench import Study
from mvq.errors import ConfigError
from mvq.patterns import Pattern


def test_toml(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "accuracy" / "cifar10.toml"
    study = Study.from_toml(path)
    assert study.name == "cifar10"
    assert [size.ratio for size in study.sizes] == [16, 22, 30]
    assert study.recipe_for(study.networks[0], study.sizes[1], "A", 5).pattern == Pattern(4, 16)
    with pytest.raises(ConfigError) as error:
        Study.from_toml(tmp_path / "no.toml")
    where = str(tmp_path / "no.toml")
    assert str(error.value) == f"study {where!r} cannot be read: [Errno 2] No such file or directory: {where!r}"


def test_overrides(tables: dict[str, Any]) -> None:
    tables["overrides"] = {"A": {"finetune": {"lr": 0.5}, "recipe": {"codewords": "packed", "d": 32}}}
    study = Study.from_dict(tables)
    assert study.options("A", "finetune") == {"lr": 0.5}
    assert study.options("D", "finetune") == {"lr": 1e-3}
    recipes = [study.recipe_for(study.networks[0], study.sizes[0], name, 3) for name in "AD"]
    assert [(r.codewords, r.d, r.seed) for r in recipes] == [("packed", 32, 3), ("masked", 8, 3)]


def test_setup_follows_what_rows_share(tables: dict[str, Any]) -> None:
    base = Study.from_dict(tables).setup
    assert Study.from_dict({**tables, "seeds": [5], "methods": ["A"]}).setup == base
    assert Study.from_dict({**tables, "finetune": {"lr": 2e-3}}).setup != base
    assert len({base, *(Study.from_dict({**tables, "recover": r}).setup for r in ({}, {"lr": 2e-3}))}) == 3
    assert Study.from_dict(json.loads(json.dumps(tables))).setup == base
    other = {**tables, "task": "segmentation"}
    meanings = ({}, {"score": "tinybench:score"}, {"loss": "tinybench:loss"})
    assert len({Study.from_dict({**other, **meaning}).setup for meaning in meanings}) == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sizes": []}, "study 'tiny': sizes is empty; give at least one"),
        ({"task": "poetry"}, "study 'tiny': task='poetry' is not one of classification, detection, segmentation"),
        (
            {"task": "detection", "distillation": None},
            "study 'tiny': task detection is trained on the dense network's outputs; give a distillation table",
        ),
        (
            {"score": "tinybench:score", "loss": "tinybench:loss"},
            "study 'tiny': loss is for other tasks than classification; leave it out\n"
            "study 'tiny': score is for other tasks than classification; leave it out",
        ),
        (
            {"finetune": {"rate": 1}, "budget": {"n_steps": 1, "sparse_share": 0.9}},
            "study 'tiny': finetune: unknown keys 'rate'; known are optimizer, lr, schedule, warmup_steps, "
            "weight_decay, codebook_lr, train_other, bn_eval, ema, grad_clip\n"
            "study 'tiny': budget: sparse_share=0.9 leaves no step of 1 to fine-tune",
        ),
        (
            {"recover": {"prune_steps": -1}},
            "study 'tiny': recover: prune_steps=-1 is not a whole number of at least 0",
        ),
        (
            {"recover": {"steps": 1}},
            "study 'tiny': recover: unknown keys 'steps'; known are images, batch_size, block_layers, cache_bytes, "
            "prune_steps, prune_epochs, block_steps, distill_epochs, lr, distill_lr, augment, fisher_images, "
            "positions, max_columns, damping, assign_rounds, permute_rounds, autocast, seed",
        ),
        (
            {"overrides": {"A": {"tune": {}}}},
            "study 'tiny': overrides.A: unknown keys 'tune'; known are recipe, sparse, finetune",
        ),
        (
            {"sizes": [{"ratio": 1, "pattern": "4:16", "d": 8}, {"ratio": 9, "pattern": "x", "d": 8}]},
            "study 'tiny': size: ratio=1 is not above 1\n"
            "study 'tiny': size 1: d=8 is not a multiple of M of pattern 4:16\n"
            "study 'tiny': size 9: pattern 'x': expected N:M with whole numbers, as in '4:16'",
        ),
        (
            {"sizes": [{"ratio": 9, "d": 8, "k": 1}]},
            "study 'tiny', size 0: unknown keys ['k'], missing keys ['pattern']; "
            "known are ratio, pattern, d, without, recipe",
        ),
        (
            {"sizes": [{"ratio": 9, "pattern": "1:2", "d": 8, "without": ["B"]}]},
            "study 'tiny': size 9: without=['B'] are not among the methods",
        ),
    ],
)
def test_faults(tables: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Study.from_dict({**tables, **changes})
    assert str(error.value) == text


def test_selection(tables: dict[str, Any]) -> None:
    study = Study.from_dict(tables)
    part = study.only(sizes=(16.0,), methods=("A",), seeds=(7,))
    assert ([s.ratio for s in part.sizes], part.methods, part.seeds) == ([16], ("A",), (7,))
    tables["sizes"] = [{**tables["sizes"][0], "without": ["A", "D"]}]
    assert Study.from_dict(tables).only(methods=("A",)).sizes[0].without == ("A",)
    tables["sizes"] = [{**tables["sizes"][0], "without": [], "recipe": {"A": {"d": 8}, "D": {"pattern": "1:4"}}}]
    study = Study.from_dict(tables)
    assert study.recipe_for(study.networks[0], study.sizes[0], "D", 0).pattern == Pattern(1, 4)
    assert study.recipe_for(study.networks[0], study.sizes[0], "A", 0).pattern != Pattern(1, 4)
    assert study.only(methods=("A",)).sizes[0].recipe == {"A": {"d": 8}}
    with pytest.raises(ConfigError) as error:
        study.only(methods=("B", "A"))
    assert str(error.value) == "study 'tiny' has no method B; it has D, A, tinybench:one_bit"
