from __future__ import annotations

import csv
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_study import STUDY

from mvq.bench import Rows, Study, run, write_report
from mvq.bench.report import render
from mvq.bench.runner import hardware
from mvq.errors import ConfigError, DataError

TIMES = ("seconds", "sparse_seconds")


def _study(**changes: Any) -> Study:
    return Study.from_dict({**STUDY, **changes})


def _without_times(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if key not in TIMES}


@pytest.fixture(scope="module")
def measured(workdir: Path) -> list[dict[str, str]]:
    return run(_study())


def test_rows(measured: list[dict[str, str]], workdir: Path) -> None:
    places = [(r["size_ratio"], r["method"], r["seed"]) for r in measured]
    assert places == [(s, m, seed) for s in ("10", "16") for m in ("D", "A", "one_bit") for seed in "01"]
    assert [row["error"] for row in measured] == [""] * 12
    for row in measured:
        steps = (int(row["sparse_steps"]), int(row["finetune_steps"]))
        assert steps == ((3, 3) if row["method"] == "D" else (0, 6))
        assert row["val_n"] == row["other_n"] == "48"
        assert 0 <= float(row["val_percent"]) <= 100
        assert int(row["n_weights"]) == 9 * (16 * 32 + 32 * 64)
        assert float(row["ratio"]) == pytest.approx(32 * int(row["n_weights"]) / int(row["bits"]), rel=1e-4)
    clustered = [row for row in measured if row["method"] != "one_bit"]
    assert all(0.93 * int(row["target_bits"]) < int(row["bits"]) <= int(row["target_bits"]) for row in clustered)
    assert all(0 < float(row["important_sse"]) <= float(row["total_sse"]) for row in clustered)
    assert {row["pattern"] for row in measured if row["method"] == "D"} == {"1:2", "4:16"}
    assert [row["bits"] for row in measured if row["method"] == "one_bit"] == ["2000"] * 4
    # One sparse-trained network for each pattern and seed.
    assert len(list(Path("work").glob("sparse-*.safetensors"))) == 4


def test_seeds_and_phases_have_their_own_order(measured: list[dict[str, str]], workdir: Path) -> None:
    # Sparse training and fine-tuning with seed 0, then with seed 1; calibration takes the first.
    assert importlib.import_module("tinybench").TRAIN_SEEDS == {0, 1, 2, 3}


def test_correctness_by_image(measured: list[dict[str, str]], workdir: Path) -> None:
    table = Rows(Path("out/rows.csv"), ["val", "other"])
    for row in measured:
        correct = table.correct(row, "other")
        assert correct is not None
        assert 100 * correct.mean() == pytest.approx(float(row["other_percent"]), abs=1e-3)


def test_finished_rows_are_not_measured_again(measured: list[dict[str, str]], workdir: Path) -> None:
    before = Path("out/rows.csv").read_bytes()
    new: list[Any] = []
    assert run(_study(), on_row=lambda *told: new.append(told)) == measured
    assert new == []
    assert Path("out/rows.csv").read_bytes() == before
    # Another seed is one more row of each method and size, and nothing else.
    run(_study(seeds=[0, 1, 2], methods=["A"]), on_row=lambda row, i, n: new.append((row["seed"], i, n)))
    assert new == [("2", 1, 2), ("2", 2, 2)]


def test_interrupted_run_goes_on(measured: list[dict[str, str]], workdir: Path) -> None:
    output = {**STUDY["output"], "rows": "part/rows.csv"}

    def interrupt(_row: Any, number: int, _total: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    study = _study(output=output, methods=["D"], sizes=STUDY["sizes"][:1])
    with pytest.raises(KeyboardInterrupt):
        run(study, on_row=interrupt)
    assert len(list(csv.DictReader(Path("part/rows.csv").read_text().splitlines()))) == 1
    told: list[int] = []
    rows = run(study, on_row=lambda _row, number, _total: told.append(number))
    assert told == [1]
    wanted = [row for row in measured if (row["size_ratio"], row["method"]) == ("10", "D")]
    assert [_without_times(row) for row in rows] == [_without_times(row) for row in wanted]


@pytest.mark.slow
def test_same_seed_same_row_also_in_processes(measured: list[dict[str, str]], workdir: Path) -> None:
    output = {**STUDY["output"], "rows": "again/rows.csv", "work": "again"}
    again = run(_study(output=output, sizes=STUDY["sizes"][1:], methods=["D"]), n_jobs=2)
    wanted = [row for row in measured if (row["size_ratio"], row["method"]) == ("16", "D")]
    assert [_without_times(row) for row in again] == [_without_times(row) for row in wanted]
    assert len({row["total_sse"] for row in again}) == 2


def test_failed_rows_are_recorded_and_the_rest_goes_on(workdir: Path) -> None:
    output = {**STUDY["output"], "rows": "failed/rows.csv", "report": "failed/results.md", "images": "failed"}
    study = _study(methods=["tinybench:failing", "A"], seeds=[0], output=output, sizes=STUDY["sizes"][:1])
    rows = run(study)
    assert [row["error"] for row in rows] == ["RuntimeError: no luck", ""]
    told: list[str] = []
    run(study, on_row=lambda row, *_: told.append(row["method"]))
    assert told == ["failing"]
    write_report(study)
    assert "* net 10x failing, seed 0: RuntimeError: no luck" in Path("failed/results.md").read_text()


def test_failed_sparse_training_fails_its_rows(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mvq.train

    def explode(*_: Any, **__: Any) -> None:
        raise ConfigError("too hot")

    monkeypatch.setattr(mvq.train, "sparse_train", explode)
    output = {**STUDY["output"], "rows": "hot/rows.csv", "work": "hot"}
    rows = run(_study(methods=["D", "A"], seeds=[0], output=output, sizes=STUDY["sizes"][:1]))
    assert [row["error"] for row in rows] == ["too hot", ""]


def test_pruned_weights_can_be_repaired_before_sparse_training(workdir: Path) -> None:
    """At no steps of sparse training: what is left is the repair, which brings the outputs back to the dense ones."""
    import tinybench

    images = next(iter(tinybench.data("train")))[0]
    wanted, errors, files = tinybench.net().eval()(images), [], set()
    for recover in (None, {"prune_steps": 20, "batch_size": 24}):
        output = {**STUDY["output"], "rows": "repaired/rows.csv", "work": "repaired"}
        budget = {**STUDY["budget"], "sparse_share": 0.0}
        rows = run(
            _study(methods=["D"], seeds=[0], output=output, sizes=STUDY["sizes"][:1], budget=budget, recover=recover)
        )
        assert [row["error"] for row in rows] == [""]
        (path,) = set(Path("repaired").glob("sparse-*.safetensors")) - files
        files.add(path)
        model = tinybench.net().eval()
        model.load_state_dict(load_file(path))
        errors.append(float((model(images) - wanted).pow(2).sum().detach()))
    assert errors[1] < 0.5 * errors[0]


def test_what_outputs_mean_is_told_to_pruning_allocation_and_training(workdir: Path) -> None:
    tinybench = importlib.import_module("tinybench")
    for method, recover in (("D", {"prune_steps": 2, "batch_size": 24}), ("allocated", None)):
        tinybench.SCORED.clear()
        tinybench.MATCHED.clear()
        output = {**STUDY["output"], "rows": "scored/rows.csv", "work": "scored"}
        changes = {"methods": [method], "reference": method, "seeds": [0], "sizes": STUDY["sizes"][:1]}
        data = {"train": "tinybench:maps", "evaluate": {"val": "tinybench:maps"}}
        meaning = {
            "task": "segmentation",
            "networks": {"net": {"model": "tinybench:map_net"}},
            "score": "tinybench:score",
            "loss": "tinybench:loss",
        }
        rows = run(_study(recover=recover, output=output, **changes, **data, **meaning))
        assert [row["error"] for row in rows] == [""]
        assert tinybench.SCORED, method
        assert len(tinybench.MATCHED) == STUDY["budget"]["n_steps"], method


def test_a_changed_study_measures_again_and_replaces(measured: list[dict[str, str]], workdir: Path) -> None:
    output = {**STUDY["output"], "rows": "changed/rows.csv"}
    study = _study(methods=["A"], seeds=[0], output=output, sizes=STUDY["sizes"][:1])
    first = run(study)
    second = run(_study(methods=["A"], seeds=[0], output=output, sizes=STUDY["sizes"][:1], finetune={"lr": 0.01}))
    assert first[0]["key"] != second[0]["key"]
    assert len(Rows(Path("changed/rows.csv"), ["val", "other"]).rows) == 1
    with pytest.raises(ConfigError) as error:
        write_report(study)
    assert str(error.value) == (
        "study 'tiny': changed/rows.csv has no row of the study as it is now; run it without --report-only first"
    )


def test_data_that_ends(workdir: Path) -> None:
    with pytest.raises(DataError) as error:
        run(_study(evaluate={"val": "tinybench:once"}, output={**STUDY["output"], "rows": "x.csv", "work": "once"}))
    assert str(error.value) == "data 'tinybench:once' is a list_iterator, which ends after one pass; give a loader"


def test_other_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError) as error:
        Rows(tmp_path / "rows.csv", ["val"])
    path = str(tmp_path / "rows.csv")
    assert str(error.value) == f"rows {path!r}: it has no column 'key'; name another file, or remove it"


def test_report(measured: list[dict[str, str]], workdir: Path) -> None:
    pytest.importorskip("matplotlib")
    Path("out/results.md").write_text("# Results\n\nKept.\n")
    written = write_report(_study())
    text = Path("out/results.md").read_text()
    assert text.startswith("# Results\n\nKept.\n\n<!-- bench:tiny:begin -->\n")
    assert "![accuracy against bytes](img/accuracy-tiny-net.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("| VQ of dense weights |")]
    assert len(lines) == 2
    values = [float(r["val_percent"]) for r in measured if r["method"] == "A" and r["size_ratio"] == "10"]
    assert f"| {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in lines[0]
    write_report(_study())
    assert Path("out/results.md").read_text() == text
    assert {path.suffix for path in written} == {".md", ".svg", ".png"}
    svg = next(path for path in written if path.suffix == ".svg").read_text()
    assert "MVQ (masked)" in svg
    assert not [line for line in svg.splitlines() if line != line.rstrip()]


def test_times_of_different_hardware_are_apart(measured: list[dict[str, str]], workdir: Path) -> None:
    table = Rows(Path("out/rows.csv"), ["val", "other"])
    assert {row["hardware"] for row in table.rows.values()} == {hardware("cpu")} != {""}
    rows = [row for row in table.rows.values() if (row["size_ratio"], row["method"]) == ("10", "D")]
    for row, kind, seconds in zip(rows, ("", "X"), (100, 2000), strict=False):
        row |= {"hardware": kind, "seconds": str(seconds)}
    assert "| 100; 2,000 (X) | 2 |" in render(_study(methods=["D"]), table)
    rows[0]["hardware"] = "X"
    assert "| 1,050 (X) | 2 |" in render(_study(methods=["D"]), table)


def test_readme(measured: list[dict[str, str]], workdir: Path) -> None:
    pytest.importorskip("matplotlib")
    study = replace(_study(), output=replace(_study().output, readme="README.md"))
    Path("README.md").write_text("# x\n")
    with pytest.raises(ConfigError) as error:
        write_report(study)
    assert str(error.value) == (
        "README.md: there is no <!-- bench:begin --> ... <!-- bench:end -->; put both lines where the table shall stand"
    )
    Path("README.md").write_text("# x\n<!-- bench:begin -->\nold\n<!-- bench:end -->\ntail\n")
    write_report(study)
    text = Path("README.md").read_text()
    assert "| method | net 10x | net 16x |" in text
    assert text.endswith("<!-- bench:end -->\ntail\n")
    assert "old" not in text
