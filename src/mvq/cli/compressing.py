"""`mvq compress`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvq.cli.models import DataOptions, build, full_spec, pick_device
from mvq.cli.output import console, make_table, note, number, print_json, sizes_json, sizes_table
from mvq.cli.recipes import read_recipe
from mvq.errors import ConfigError


def run(
    spec: str,
    output: Path,
    *,
    weights: Path | None,
    data: DataOptions | None,
    recipe: str,
    settings: Sequence[str],
    sparse_epochs: int,
    finetune_epochs: int,
    lr: float,
    seed: int | None,
    task: str,
    num_classes: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Build, prune, train, cluster, fine-tune, save; each accuracy is measured where there is data.

    Raises:
        MvqError: on wrong input.
    """
    chosen = read_recipe(recipe, settings, seed=seed)
    if not output.parent.is_dir():
        raise ConfigError(f"--output {str(output)!r}: there is no folder {str(output.parent)!r}; make it first")
    import torch

    from mvq import api
    from mvq.nn import cluster_, extract, prune_
    from mvq.sizes import sizes
    from mvq.train import finetune

    place = pick_device(device)
    torch.manual_seed(chosen.seed)
    model = build(spec, weights=weights, num_classes=num_classes).to(place)
    if weights is None and full_spec(spec).startswith("torchvision/"):
        note("mvq: no --weights: the model has random weights")
    meter = _Meter(data, task)
    # Read now, so that a fault shows before the long work.
    train = data.load("train") if data is not None and (sparse_epochs or finetune_epochs) else None
    meter.measure(model, "dense")
    prune_(model, chosen)
    if train is not None and sparse_epochs:
        finetune(model, train, epochs=sparse_epochs, lr=lr, progress=True)
        meter.measure(model, "pruned")
    cluster_(model, chosen, progress=True)
    meter.measure(model, "compressed")
    if train is not None and finetune_epochs:
        finetune(model, train, epochs=finetune_epochs, lr=lr, progress=True)
        meter.measure(model, "finetuned")
    facts = _provenance(spec, weights, num_classes, task, data, meter)
    n_bytes = api.save(model, output, provenance=facts)
    found = sizes(extract(model), n_bytes)
    macs = meter.flops(model)
    if as_json:
        result = {"file": str(output), "bytes": n_bytes, "model": full_spec(spec), "recipe": chosen.to_dict()}
        print_json(result | {"accuracy": meter.results, "flops": macs, "sizes": sizes_json(found)})
        return
    out = console()
    if meter.results:
        table = make_table("Accuracy", [("step", "<"), ("metric", "<"), ("%", ">"), ("images", ">")])
        for step, result in meter.results.items():
            table.add_row(step, result["metric"], number(result["value"], ".2f"), f"{result['n']:,}")
        out.print(table)
    out.print(sizes_table(found))
    if macs:
        out.print(f"FLOPs (multiply-accumulates): {macs['dense']:,} dense, {macs['executed']:,} executed")
    out.print(f"wrote {output}", markup=False)


class _Meter:
    """Accuracy by step, as `Result.to_dict` gives it; nothing without data."""

    def __init__(self, data: DataOptions | None, task: str) -> None:
        self.loader: Any = None if data is None else data.load("val")
        self.task = task
        self.results: dict[str, dict[str, Any]] = {}

    def measure(self, model: Any, step: str) -> None:
        if self.loader is not None:
            from mvq.tasks import evaluate

            self.results[step] = evaluate(model, self.loader, task=self.task, progress=True).to_dict()

    def flops(self, model: Any) -> dict[str, int] | None:
        """Multiply-accumulates of one image; None without data or for inputs that are no tensor."""
        import torch

        from mvq import flops

        if self.loader is None:
            return None
        inputs = next(iter(self.loader))[0]
        if not isinstance(inputs, torch.Tensor):
            return None
        counted = flops.count(model, inputs[:1].to(next(model.parameters()).device))
        return {"dense": counted.dense, "executed": counted.executed}


def _provenance(
    spec: str, weights: Path | None, num_classes: int | None, task: str, data: DataOptions | None, meter: _Meter
) -> dict[str, Any]:
    """Facts stored in the file. Names of files only: paths say more of the machine than of the network."""
    facts: dict[str, Any] = {"model": full_spec(spec), "task": task}
    if weights is not None:
        facts["weights"] = weights.name
    if num_classes is not None:
        facts["num_classes"] = num_classes
    preprocessing = _preprocessing(data, meter.loader)
    if preprocessing is not None:
        facts["preprocessing"] = preprocessing
    if meter.results:
        facts["result"] = list(meter.results.values())[-1]
    return facts


def _preprocessing(data: DataOptions | None, loader: Any) -> dict[str, Any] | None:
    """What the loader does to images, where it tells."""
    from mvq.tasks import Preprocessing

    if data is None:
        return None
    if data.preprocessing is not None and data.image_size is None:
        return Preprocessing.preset(data.preprocessing).to_dict()
    dataset = getattr(loader, "dataset", None)
    dataset = getattr(dataset, "dataset", dataset)
    found = getattr(dataset, "preprocessing", None)
    if found is None:
        # A class folder's transform is a method of the preprocessing.
        found = getattr(getattr(dataset, "transform", None), "__self__", None)
    return found.to_dict() if isinstance(found, Preprocessing) else None
