"""The short way: compress a model, save it, load it, turn it into integers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mvq.errors import ModelError
from mvq.nn import Int8Weight, VQWeight, as_recipe, cluster_, eligible_layers, extract, install_, prune_, unwrap
from mvq.nn.layers import form_of
from mvq.nn.state import install_dense
from mvq.recipe import Recipe

if TYPE_CHECKING:
    from mvq.accel.network import IntegerNetwork
    from mvq.accel.network.calibration import Method
    from mvq.format import MvqFile

Builder = Callable[[], nn.Module]
_BUILDERS: dict[str, Builder] = {}


def compress(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    data: Iterable[Any] | None = None,
    *,
    importance: Mapping[str, Any] | None = None,
    epochs: int = 1,
    learn_assignments: bool = False,
    progress: bool = False,
) -> nn.Module:
    """Prune, cluster and, where data is given, fine-tune a model.

    Args:
        model: changed in place.
        recipe: a `Recipe`, a preset name (`mvq-22x`, ...) or a dictionary.
        data: loader of `(inputs, targets)` batches for `finetune` with its defaults; None leaves that step
            out.
        importance: per-weight importance, see `cluster_`.
        epochs: of fine-tuning.
        learn_assignments: as in `finetune`, from the weights before clustering on; nothing is learned without data.
        progress: show bars.

    Returns:
        The model.

    Raises:
        MvqError: as `prune_`, `cluster_` and `finetune`.
    """
    recipe = as_recipe(recipe)
    prune_(model, recipe)
    learns = learn_assignments and data is not None
    cluster_(model, recipe, importance=importance, soft=learns, progress=progress)
    if data is not None:
        from mvq.train import finetune

        finetune(model, data, epochs=epochs, learn_assignments=learns, progress=progress)
    return model


def save(model: nn.Module, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> int:
    """Write a clustered model to a `.mvq` file.

    Args:
        model: after `cluster_`, `compress` or `load_into`.
        path: of the file; replaced atomically if it exists.
        provenance: JSON-serialisable facts to store. With `provenance["model"]` naming a builder, `load`
            needs no model.

    Returns:
        Bytes of the file.

    Raises:
        ModelError: if the model is not compressed.
    """
    from mvq.format import write

    return write(extract(model, provenance=provenance), path)


def load_into(model: nn.Module, path: str | Path, *, dense: bool = False) -> nn.Module:
    """Put the network of a `.mvq` file on a model of the same architecture.

    Args:
        model: changed in place.
        path: of the file.
        dense: decode to plain dense weights, for inference. By default weights stay compressed: saving again
            gives an equal network, and fine-tuning can go on.

    Returns:
        The model.

    Raises:
        FormatError: if the file is damaged.
        ModelError: if its names or shapes do not fit the model; it is untouched then.
    """
    from mvq.format import open_file

    with open_file(path) as file:
        return _install_file(model, file, dense)


def load(path: str | Path, *, dense: bool = False, trust: bool = False) -> nn.Module:
    """Build the model that a `.mvq` file names and put the network on it.

    `provenance["model"]` of the file is a name given to `register_model`, a `torchvision/NAME`, `mvq/NAME`, or
    `package.module:callable`. The last imports code that the file chose, so it is done with `trust=True`
    only.

    Args:
        path: of the file.
        dense: see `load_into`.
        trust: allow `package.module:callable`.

    Returns:
        The model in evaluation mode.

    Raises:
        FormatError: if the file is damaged.
        ModelError: if it names no model or one that cannot be built, or does not fit it.
    """
    from mvq.format import open_file

    with open_file(path) as file:
        spec = file.provenance.get("model")
        if not isinstance(spec, str):
            raise ModelError(f"file {str(path)!r} names no model in its provenance; build the model and use load_into")
        return _install_file(_build(spec, trust), file, dense).eval()


def integer_network(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    method: Method = "mse",
    psum_bits: int = 32,
    provenance: Mapping[str, Any] | None = None,
) -> IntegerNetwork:
    """Turn a model into integers: int8 activations, the codes of its compressed weights, int32 sums.

    Args:
        model: compressed or plain; not changed. Weights that are not compressed become int8.
        calibration: see `mvq.accel.network.from_torch`, as all that follows.
        method: how ranges of activations are found.
        psum_bits: width of the accumulator.
        provenance: JSON-serialisable facts to go along.

    Raises:
        MvqError: as `mvq.accel.network.from_torch`.
    """
    from mvq.accel.network import from_torch

    root = unwrap(model)
    is_compressed = any(isinstance(form_of(m), VQWeight | Int8Weight) for _, m, _ in eligible_layers(root))
    return from_torch(
        root,
        calibration,
        compressed=extract(root) if is_compressed else None,
        method=method,
        psum_bits=psum_bits,
        provenance=provenance,
    )


def _install_file(model: nn.Module, file: MvqFile, dense: bool) -> nn.Module:
    if not dense:
        return install_(model, file.read())
    tensors = {name: file.tensor(name) for name in file.tensor_names}
    weights: dict[str, Any] = {}

    def decode(name: str) -> Any:
        if not weights:
            weights.update(file.dense_weights())
        return weights.pop(name)

    return install_dense(model, file.layers, tensors, decode)


def register_model(name: str, builder: Builder) -> None:
    """Let `load` build models by name.

    Args:
        name: what files say in `provenance["model"]`; a second registration replaces the first.
        builder: called without arguments, returns a model of the right architecture.
    """
    _BUILDERS[name] = builder


def _build(spec: str, trust: bool) -> nn.Module:
    if spec in _BUILDERS:
        return _BUILDERS[spec]()
    if spec.startswith(("torchvision/", "mvq/")):
        from mvq.tasks.models import build_model

        return build_model(spec)
    module, _, name = spec.partition(":")
    if not name:
        raise ModelError(f"model {spec!r} is not known; register_model it, or build the model and use load_into")
    if not trust:
        raise ModelError(
            f"model {spec!r} would import and run code that the file names; pass trust=True if you trust "
            "the file, "
            f"or build the model and use load_into"
        )
    try:
        model = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"model {spec!r} cannot be imported ({error}); build the model and use load_into") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} made a {type(model).__name__}, expected a torch.nn.Module")
    return model
