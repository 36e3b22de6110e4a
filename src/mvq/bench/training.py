"""Networks, data and the two phases of training, the same for every method."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvq.baselines.forms import rival_forms
from mvq.bench.methods import Method, Point
from mvq.bench.study import Network, Study
from mvq.bench.teacher import Remembered
from mvq.errors import ConfigError, DataError, ModelError
from mvq.nn import bake_, is_soft, prune_
from mvq.outputs import Loss, Score, output_loss, score_and_loss
from mvq.recipe import Recipe
from mvq.tasks import load_data
from mvq.tasks.imports import import_callable, is_import_spec


def build(network: Network, folder: Path) -> nn.Module:
    """The dense network.

    Raises:
        ModelError: if its spec does not give one.
    """
    if not is_import_spec(network.model):
        raise ModelError(f"network {network.name!r}: model {network.model!r} is not package.module:callable")
    folder.mkdir(parents=True, exist_ok=True)
    model = _call(import_callable(network.model, ModelError), {"folder": folder})
    if not isinstance(model, nn.Module):
        raise ModelError(f"network {network.name!r}: {network.model!r} gave a {type(model).__name__}, not a module")
    return model.eval()


def loader(spec: str, split: str, batch_size: int, seed: int = 0) -> Any:
    """Data by spec; training data in an order that the seed decides.

    Raises:
        DataError: as `mvq.tasks.load_data`, or if the data can be gone through only once.
    """
    options = {"split": split, "batch_size": batch_size, "seed": seed}
    if is_import_spec(spec):
        batches = _call(import_callable(spec, DataError), options)
    else:
        batches = load_data(spec, split=split, batch_size=batch_size, seed=seed, shuffle=split == "train")
    if not hasattr(batches, "__iter__") or iter(batches) is batches:
        raise DataError(f"data {spec!r} is a {type(batches).__name__}, which ends after one pass; give a loader")
    return batches


def calibration(study: Study) -> list[Any]:
    """The first batches of the training data, in an order that no seed of a row changes."""
    batches, n = [], 0
    for batch in loader(study.train, "train", study.budget.batch_size):
        batches.append(batch)
        n += len(batch[1])
        if n >= study.budget.calibration_images:
            break
    return batches


def meaning(study: Study) -> tuple[Score | None, Loss | None]:
    """What outputs mean, as `mvq.recover` takes it: what the study names, else what its task says."""
    score, loss = score_and_loss(study.task)
    return (
        score if study.score is None else import_callable(study.score, ConfigError),
        loss if study.loss is None else import_callable(study.loss, ConfigError),
    )


def digest(*parts: Any) -> str:
    """Hash of plain values, the same in every process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state_digest(model: nn.Module) -> str:
    """Hash of a network's whole state."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        found.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        found.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return found.hexdigest()[:16]


@contextlib.contextmanager
def quiet_random(seed: int) -> Iterator[None]:
    """Seeds torch's global generator inside and puts it back; sums of denormals are flushed, as they are slow."""
    torch.set_flush_denormal(True)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_flush_denormal(False)


def sparse_key(study: Study, method: Method, recipe: Recipe, dense_digest: str, seed: int) -> str:
    """Everything that decides a sparse-trained network; methods with equal keys share it."""
    masks = [str(recipe.pattern), recipe.d, recipe.first_conv, recipe.classifier, recipe.depthwise]
    treatments = [
        (glob, [c for c in changes if c[0] in ("treatment", "pattern")]) for glob, changes in recipe.overrides
    ]
    n_steps = study.budget.steps(sparse=True)[0]
    fixed = [study.task, study.train, study.budget.batch_size, study.budget.autocast, study.distillation]
    fixed += [one for one in (study.loss, study.score, study.recover) if one is not None]
    options = study.options(method.name, "sparse")
    return digest("sparse", dense_digest, masks, treatments, n_steps, fixed, options, seed)


def sparse_network(
    study: Study, method: Method, point: Point, recipe: Recipe, model: nn.Module, path: Path
) -> tuple[nn.Module, float]:
    """Train with the recipe's masks and make the weights plain; read from `path` where that was done before.

    Args:
        study: budget, data and options.
        method: for its options.
        point: for its seed.
        recipe: whose masks are used.
        model: dense; changed in place.
        path: of the file that keeps the result.

    Returns:
        The model, and the seconds the training took when it was done.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if path.is_file():
        with safe_open(path, framework="pt") as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
            return model, float(file.metadata()["seconds"])
    from mvq.recover import RecoverConfig, recover_pruned_
    from mvq.train import sparse_train

    teacher = frozen_copy(model)
    start = time.perf_counter()
    n_steps = study.budget.steps(sparse=True)[0]
    if study.recover is not None:
        config, (score, loss) = RecoverConfig(**{"seed": point.seed, **study.recover}), meaning(study)
        recover_pruned_(model, recipe, calibration(study), config=config, score=score, loss=loss)
    elif n_steps == 0:
        prune_(model, recipe)
    if n_steps:
        data = loader(study.train, "train", study.budget.batch_size, 2 * point.seed)
        options = _options(study, method, "sparse", teacher, data, n_steps, 2 * point.seed)
        sparse_train(model, recipe, data, **options)
        _keep_answers(options)
    bake_(model)
    seconds = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, partial, metadata={"seconds": f"{seconds:.2f}"})
    partial.replace(path)
    return model, seconds


def finetune_phase(study: Study, method: Method, point: Point, model: nn.Module, teacher: nn.Module) -> int:
    """Fine-tune for the rest of the budget; forms of rivals follow each step and are hardened at the end.

    Assignments are learned where the method left them soft.

    Returns:
        Steps made.
    """
    from mvq.train import finetune

    n_steps = study.budget.steps(sparse=method.uses_masks)[1]
    forms = list(rival_forms(model))

    def after_step(step: int, loss: float) -> None:
        for form in forms:
            form.after_step(step, n_steps)

    # Another order than in sparse training, so that methods without it see as much that is new.
    data = loader(study.train, "train", study.budget.batch_size, 2 * point.seed + 1)
    options = _options(study, method, "finetune", teacher, data, n_steps, 2 * point.seed + 1)
    finetune(model, data, on_step=after_step, learn_assignments=is_soft(model), **options)
    _keep_answers(options)
    for form in forms:
        form.harden_()
    return n_steps


def _options(
    study: Study, method: Method, phase: str, teacher: nn.Module, data: Iterable[Any], n_steps: int, data_seed: int
) -> dict[str, Any]:
    from mvq.train import Distillation, Matching

    try:
        length = len(data)  # pyright: ignore[reportArgumentType]
    except TypeError:
        length = 1
    options = study.options(method.name, phase)
    options |= {"max_steps": n_steps, "epochs": -(-n_steps // length), "autocast": study.budget.autocast}
    if study.task != "classification":
        options["objective"] = Matching(teacher, meaning(study)[1] or output_loss)
    elif study.distillation is not None:
        asked = digest(study.train, study.budget.batch_size, study.budget.autocast, data_seed)
        answers = Path(study.output.work) / f"teacher-{state_digest(teacher)}-{asked}.safetensors"
        options["objective"] = Distillation(Remembered(teacher, answers), **dict[str, Any](study.distillation))
    return options


def _keep_answers(options: Mapping[str, Any]) -> None:
    teacher = getattr(options.get("objective"), "teacher", None)
    if isinstance(teacher, Remembered):
        teacher.save()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy for reference only."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def _call(maker: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call with those of the options that it takes by name."""
    named = inspect.signature(maker).parameters
    return maker(**{key: value for key, value in options.items() if key in named})
