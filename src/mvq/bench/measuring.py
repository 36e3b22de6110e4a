"""What is measured of one network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvq.baselines.forms import RivalForm, compressed_bits
from mvq.bench.study import Study
from mvq.bench.training import loader
from mvq.errors import DataError
from mvq.nn import Int8Weight, VQWeight, eligible_layers
from mvq.nn.layers import dense_weight, form_of, plan
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import Recipe
from mvq.tasks import evaluate
from mvq.tasks.running import running


@dataclass(frozen=True, eq=False)
class Measured:
    """A network on one evaluation set.

    Attributes:
        metric: name of `value`.
        value: in percent.
        n: images.
        predictions: class ranked first, by image; None for other tasks than classification.
        correct: whether it is right, by image; likewise.
    """

    metric: str
    value: float
    n: int
    predictions: NDArray[np.int64] | None = None
    correct: NDArray[np.bool_] | None = None


def measure(study: Study, model: nn.Module) -> dict[str, Measured]:
    """The network on every evaluation set."""
    sets = {name: loader(spec, "val", study.budget.batch_size) for name, spec in study.evaluate.items()}
    if study.task == "classification":
        return {name: _classify(model, batches) for name, batches in sets.items()}
    results = {name: evaluate(model, batches, task=study.task) for name, batches in sets.items()}
    return {name: Measured(r.metric, r.value, r.n) for name, r in results.items()}


def _classify(model: nn.Module, batches: Iterable[Any]) -> Measured:
    found, wanted = [], []
    with running(model, None) as place:
        for inputs, targets in batches:
            found.append(model(inputs.to(place)).argmax(1).cpu())
            wanted.append(torch.as_tensor(targets).cpu())
    if not found:
        raise DataError("evaluation: the loader yields no image")
    predictions, targets = torch.cat(found).numpy(), torch.cat(wanted).numpy()
    correct = predictions == targets
    return Measured("top1", 100 * float(correct.mean()), len(correct), predictions, correct)


def agreement(found: Measured, dense: Measured) -> float | None:
    """Percentage of images that get the dense network's class."""
    if found.predictions is None or dense.predictions is None:
        return None
    return 100 * float((found.predictions == dense.predictions).mean())


def dense_measured(study: Study, model: nn.Module, dense_digest: str, folder: Path) -> dict[str, Measured]:
    """`measure` of the dense network, kept in the folder."""
    spec = repr([study.task, sorted(study.evaluate.items())])
    path = folder / f"dense-{dense_digest}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}.npz"
    if not path.is_file():
        results = measure(study, model)
        arrays: dict[str, Any] = {}
        for name, result in results.items():
            arrays[f"{name}.facts"] = np.array([result.metric, repr(result.value), str(result.n)])
            if result.predictions is not None:
                arrays |= {f"{name}.predictions": result.predictions, f"{name}.correct": result.correct}
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **arrays)
        partial.replace(path)
    with np.load(path) as arrays:
        return {name: _read(arrays, name) for name in study.evaluate}


def _read(arrays: Mapping[str, NDArray], name: str) -> Measured:
    metric, value, n = arrays[f"{name}.facts"].tolist()
    if f"{name}.predictions" not in arrays:
        return Measured(metric, float(value), int(n))
    return Measured(metric, float(value), int(n), arrays[f"{name}.predictions"], arrays[f"{name}.correct"])


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that a method starts from."""
    return {name: module.weight.detach().clone() for name, module, _ in eligible_layers(model)}  # type: ignore[operator,union-attr]


def errors(model: nn.Module, recipe: Recipe, before: Mapping[str, Tensor]) -> tuple[float, float]:
    """Squared error of the compressed layers against the weights before: over all of them, and over the important.

    Important are those that the recipe's N:M magnitude mask of the weights before keeps (ablation of MVQ).
    """
    total = important = 0.0
    for name, module, layer in plan(model, recipe):
        if layer.treatment != "compress":
            continue
        target = before[name].double().cpu().numpy()
        decoded = module.weight.detach().double().cpu().numpy()  # type: ignore[operator,union-attr]
        square = (decoded - target) ** 2
        mask = magnitude_mask(target.astype(np.float32), layer.pattern, layer.d, name=name)
        total += float(square.sum())
        important += float(square[weight_mask(mask, target.shape)].sum())
    return total, important


def model_bits(model: nn.Module) -> int:
    """Bits of the whole model: compressed weights, int8 weights with their scales, all other state as it is."""
    layers = eligible_layers(model)
    bits = compressed_bits(model)
    for _, module, _ in layers:
        form = form_of(module)
        if isinstance(form, Int8Weight):
            bits += 8 * dense_weight(module).numel() + 32 * form.scales.numel()
        elif not isinstance(form, (RivalForm, VQWeight)):
            bits += 32 * dense_weight(module).numel()
    weights = {f"{name}.weight" for name, _, _ in layers}
    for name, tensor in model.state_dict().items():
        # What a form holds is counted above; it lies under `parametrizations`.
        if name not in weights and ".parametrizations.weight." not in f".{name}":
            bits += (32 if tensor.is_floating_point() else 8 * tensor.element_size()) * tensor.numel()
    return bits


def settings(model: nn.Module) -> dict[str, str]:
    """Pattern, d and codewords of the vector-quantized layers; several values are joined by `/`."""
    forms = [form_of(module) for _, module, _ in eligible_layers(model)]
    quantized = [form for form in forms if isinstance(form, VQWeight)]
    values = {
        "pattern": [str(form.pattern) for form in quantized],
        "d": [form.d for form in quantized],
        "n_codewords": [form.n_codewords for form in quantized],
    }
    return {key: "/".join(map(str, sorted(set(found)))) for key, found in values.items()}
