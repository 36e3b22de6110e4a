"""`mvq prune`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mvq.cli.models import build, check_folder, full_spec, load, note_random_weights, pick_device, task_of
from mvq.cli.options import DataOptions, ModelOptions, RecipeOptions, TrainingOptions
from mvq.cli.output import console, print_json
from mvq.cli.recipes import read_recipe
from mvq.cli.training import Meter, arguments, facts, sparse_method
from mvq.errors import ConfigError, FileError

SUFFIXES = (".safetensors", ".pt", ".pth")


def run(
    model_options: ModelOptions,
    output: Path,
    *,
    data: DataOptions,
    recipe: RecipeOptions,
    training: TrainingOptions,
    epochs: int,
    method: str | None,
    as_json: bool,
) -> None:
    """Prune, train under the masks, write the weights with their zeros.

    Raises:
        MvqError: on wrong input.
    """
    chosen = read_recipe(recipe.recipe, recipe.settings or (), seed=recipe.seed)
    check_folder(output)
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {str(output)!r}: the name must end in {', '.join(SUFFIXES)}")
    import torch

    from mvq.train import sparse_train

    task, place = task_of(model_options), pick_device(model_options.device)
    torch.manual_seed(chosen.seed)
    model = build(model_options, task=task, image_size=data.image_size).to(place)
    note_random_weights(model_options)
    meter = Meter(data, task)
    batches = load(data, "train", task=task, train=True, augment=training.augment, seed=chosen.seed)
    meter.measure(model, "dense")
    how = sparse_method(method, task)
    sparse_train(model, chosen, batches, method=how, **arguments(training, "sparse", task=task, epochs=epochs))
    meter.measure(model, "pruned")
    notes = facts(model_options, task, data, meter) | {"recipe": chosen.to_dict(), "sparse_method": how}
    n_zero, n = _write(model, output, notes)
    if as_json:
        spec, share = full_spec(model_options.spec or ""), n_zero / n
        result = {"file": str(output), "model": spec, "recipe": chosen.to_dict(), "sparse_method": how}
        print_json(result | {"zeros": share, "accuracy": meter.results})
        return
    out = console()
    out.print(meter.table())
    out.print(f"{n_zero / n:.1%} of {n:,} convolution and linear weights are zero")
    out.print(f"wrote {output}; compress it with the same recipe and --weights {output}", markup=False)


def _write(model: Any, path: Path, notes: dict[str, Any]) -> tuple[int, int]:
    """Weights under their plain names; zero and all weights of convolutions and linear layers.

    Pruning these weights again keeps the same ones, because zeros are the smallest.
    """
    import torch

    from mvq.nn import bake_, eligible_layers

    plain = bake_(copy.deepcopy(model))
    weights: list[Any] = [module.weight for _, module, _ in eligible_layers(plain)]
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in plain.state_dict().items()}
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, path, metadata={"mvq_pruned": json.dumps(notes)})
        else:
            torch.save({"state_dict": state, "mvq_pruned": json.dumps(notes)}, path)
    except (OSError, RuntimeError) as error:
        raise FileError(f"file {str(path)!r} cannot be written: {error}") from error
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
