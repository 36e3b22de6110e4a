"""`mvq compress`."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvq.cli.models import build, check_folder, full_spec, load, note_random_weights, pick_device, task_of
from mvq.cli.options import DataOptions, ModelOptions, RecipeOptions, TrainingOptions
from mvq.cli.output import console, print_json, sizes_json, sizes_table
from mvq.cli.recipes import read_recipe
from mvq.cli.training import Meter, arguments, facts, sparse_method
from mvq.recipe import Recipe

#: Images that block-wise recovery looks at; more change little.
CALIBRATION_IMAGES = 1024


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What is done beside pruning and clustering.

    Attributes:
        sparse_epochs: of training under the masks.
        sparse_method: `sr-ste`, `asp`, or None for the task's.
        recover: recover the network's outputs on training images, in place of pruning and clustering.
        ratio: choose pattern, d and codewords layer by layer for this ratio, before all else; None for the recipe's.
        max_macs: share of the multiply-accumulates that these layers execute then; None for any.
        finetune_epochs: of training the codebooks.
        distill: fine-tune towards the outputs of the dense network.
        learn_assignments: in fine-tuning.
    """

    sparse_epochs: int = 0
    sparse_method: str | None = None
    recover: bool = False
    ratio: float | None = None
    max_macs: float | None = None
    finetune_epochs: int = 0
    distill: bool = False
    learn_assignments: bool = False


def run(
    model_options: ModelOptions,
    output: Path,
    *,
    data: DataOptions | None,
    recipe: RecipeOptions,
    training: TrainingOptions,
    stages: Stages,
    as_json: bool,
) -> None:
    """Build, prune, train, cluster, fine-tune, save; each accuracy is measured where there is data.

    Raises:
        MvqError: on wrong input.
    """
    chosen = read_recipe(recipe.recipe, recipe.settings or (), seed=recipe.seed)
    check_folder(output)
    import torch

    from mvq import api
    from mvq.nn import extract
    from mvq.sizes import sizes

    task, place = task_of(model_options), pick_device(model_options.device)
    torch.manual_seed(chosen.seed)
    model = build(model_options, task=task, image_size=None if data is None else data.image_size).to(place)
    note_random_weights(model_options)
    meter = Meter(data, task)
    model, chosen = _compress(model, chosen, data, training, stages, meter)
    n_bytes = api.save(model, output, provenance=facts(model_options, task, data, meter))
    found = sizes(extract(model), n_bytes)
    macs = meter.flops(model)
    if as_json:
        spec = full_spec(model_options.spec or "")
        result = {"file": str(output), "bytes": n_bytes, "model": spec, "recipe": chosen.to_dict()}
        print_json(result | {"accuracy": meter.results, "flops": macs, "sizes": sizes_json(found)})
        return
    out = console()
    if meter.results:
        out.print(meter.table())
    out.print(sizes_table(found))
    if macs:
        out.print(f"FLOPs (multiply-accumulates): {macs['dense']:,} dense, {macs['executed']:,} executed")
    out.print(f"wrote {output}", markup=False)


def _compress(
    model: Any, recipe: Recipe, data: DataOptions | None, training: TrainingOptions, stages: Stages, meter: Meter
) -> tuple[Any, Recipe]:
    """The model, and the recipe that was used."""
    from mvq.nn import cluster_, prune_
    from mvq.train import finetune, sparse_train

    task = meter.task
    trains = data is not None and bool(stages.sparse_epochs or stages.finetune_epochs)
    # Read now, so that a fault shows before the long work.
    batches: Any = None
    if data is not None and trains:
        batches = load(data, "train", task=task, train=True, augment=training.augment, seed=recipe.seed)
    teacher = copy.deepcopy(model).eval() if stages.distill else None
    tuning = arguments(training, "finetune", task=task, epochs=stages.finetune_epochs, teacher=teacher)
    images: Any = None
    if data is not None and (stages.recover or stages.ratio is not None):
        few = dataclasses.replace(data, limit=min(data.limit or CALIBRATION_IMAGES, CALIBRATION_IMAGES))
        images = load(few, "train", task=task, seed=recipe.seed)
    meter.measure(model, "dense")
    if stages.ratio is not None:
        from mvq.allocate import allocate_untrained

        recipe = allocate_untrained(model, recipe, images, ratio=stages.ratio, max_macs=stages.max_macs, progress=True)
    if stages.recover:
        from mvq.outputs import score_and_loss
        from mvq.recover import recover

        score, loss = score_and_loss(task)
        model = recover(model, recipe, images, score=score, loss=loss, progress=True)
    else:
        if stages.sparse_epochs:
            sparse = arguments(training, "sparse", task=task, epochs=stages.sparse_epochs)
            sparse_train(model, recipe, batches, method=sparse_method(stages.sparse_method, task), **sparse)
            meter.measure(model, "pruned")
        else:
            prune_(model, recipe)
        cluster_(model, recipe, soft=stages.learn_assignments, progress=True)
    meter.measure(model, "compressed")
    if stages.finetune_epochs:
        finetune(model, batches, learn_assignments=stages.learn_assignments, **tuning)
        meter.measure(model, "finetuned")
    return model, recipe
