"""What the commands that train have in common: the loss, the stages, and measuring in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvq.cli.models import full_spec, load
from mvq.cli.options import DataOptions, ModelOptions, TrainingOptions
from mvq.cli.output import make_table, number
from mvq.errors import ConfigError


def arguments(options: TrainingOptions, stage: str, *, task: str, epochs: int, teacher: Any = None) -> dict[str, Any]:
    """What `mvq.train.finetune` and `sparse_train` take, for one stage; options not given are left out.

    Args:
        options: of the command.
        stage: names the checkpoint in the checkpoint folder.
        task: decides on the loss.
        epochs: of the stage.
        teacher: a network to distil from, beside the task's loss.

    Raises:
        ConfigError: if an option is out of range, or a teacher is given for detection.
    """
    from mvq.tasks import objective

    smoothing = {} if task != "classification" else {"label_smoothing": options.label_smoothing}
    loss: Any = objective(task, **smoothing)
    if teacher is not None:
        if task == "detection":
            raise ConfigError("--distill: detectors give losses in training, no classes to follow; leave it out")
        from mvq.train import Distillation

        loss = Distillation(teacher, loss_fn=loss.loss)
    checkpoint: Path | None = None
    if options.checkpoint is not None:
        options.checkpoint.mkdir(parents=True, exist_ok=True)
        checkpoint = options.checkpoint / f"{stage}.pt"
    chosen = {
        "epochs": epochs,
        "max_steps": options.max_steps,
        "lr": options.lr,
        "optimizer": options.optimizer,
        "weight_decay": options.weight_decay,
        "warmup_steps": options.warmup_steps,
        "ema": options.ema,
        # Batches of detectors are too small for statistics.
        "bn_eval": task == "detection" if options.bn_eval is None else options.bn_eval,
        "objective": loss,
        "checkpoint": checkpoint,
        "checkpoint_every": options.checkpoint_every,
        "resume": options.resume,
        "progress": True,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def sparse_method(named: str | None, task: str) -> Any:
    """The method of training under masks: SR-STE for classification, ASP for the rest (MVQ)."""
    return named or ("sr-ste" if task == "classification" else "asp")


class Meter:
    """Accuracy by step, as `Result.to_dict` gives it; nothing without data.

    Args:
        data: what to measure on, its `val` split.
        task: decides on the metric.
        stored: the preprocessing that a file names.
    """

    def __init__(self, data: DataOptions | None, task: str, stored: Mapping[str, Any] | None = None) -> None:
        self.loader: Any = None if data is None else load(data, "val", task=task, stored=stored)
        self.task = task
        self.results: dict[str, dict[str, Any]] = {}

    def measure(self, model: Any, step: str) -> None:
        """Evaluate, and note the result under the name of the step."""
        if self.loader is not None:
            from mvq.tasks import evaluate

            self.results[step] = evaluate(model, self.loader, task=self.task, progress=True).to_dict()

    @property
    def last(self) -> dict[str, Any]:
        """`{"result": ...}` of the last step, or nothing."""
        return {"result": list(self.results.values())[-1]} if self.results else {}

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

    def table(self) -> Any:
        """Every metric of every step, for people."""
        table = make_table("Accuracy", [("step", "<"), ("metric", "<"), ("%", ">"), ("images", ">")])
        for step, result in self.results.items():
            names = [result["metric"], *(k for k in result if k not in ("task", "metric", "value", "n"))]
            values = [result["value"], *(result[k] for k in names[1:])]
            for i, (name, value) in enumerate(zip(names, values, strict=True)):
                table.add_row("" if i else step, name, number(value, ".2f"), "" if i else f"{result['n']:,}")
        return table


def facts(model: ModelOptions, task: str, data: DataOptions | None, meter: Meter) -> dict[str, Any]:
    """Facts stored in a file. Names of files only: paths say more of the machine than of the network."""
    out: dict[str, Any] = {"model": full_spec(model.spec or ""), "task": task}
    if model.weights is not None:
        out["weights"] = model.weights.name
    if model.num_classes is not None:
        out["num_classes"] = model.num_classes
    if data is not None and task == "detection" and data.image_size is not None:
        out["image_size"] = data.image_size
    preprocessing = getattr(getattr(meter.loader, "dataset", None), "preprocessing", None)
    if preprocessing is not None:
        out["preprocessing"] = preprocessing.to_dict()
    return out | meter.last
