"""Between models and `CompressedModel`: reading off (`extract`) and putting on (`install_`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvq.compressed import Codebook, CompressedModel, DenseLayer, Int8Layer, Layer, VQLayer, index_dtype
from mvq.errors import ModelError
from mvq.nn.layers import attach, check_tied, dense_weight, detach, eligible_layers, form_of, kind, unwrap
from mvq.nn.parametrizations import Int8Weight, LearnedCodebook, NMMask, VQWeight
from mvq.recipe import LayerRecipe, Recipe, Role


class LayerShape(Protocol):
    """What is needed of a layer to see whether it fits."""

    @property
    def name(self) -> str:
        """Of the module."""
        ...

    @property
    def kind(self) -> str:
        """`conv` or `linear`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        ...


def extract(model: nn.Module, *, provenance: Mapping[str, Any] | None = None) -> CompressedModel:
    """Read a clustered model off as plain data, on the CPU, independent of the model.

    Floating-point state (batch norm, biases, buffers, skipped weights) takes the `other_dtype` of the recipe;
    integers keep their type. Non-persistent buffers are left out, as in a `state_dict`.

    Args:
        model: after `cluster_` or `install_`, wrapped in DDP or compiled or not.
        provenance: JSON-serialisable facts to go along.

    Raises:
        ModelError: if nothing is compressed, if a layer is pruned but not clustered, if state does not fit
            `other_dtype`, or if a weight is computed by others.
    """
    root = unwrap(model)
    layers = eligible_layers(root)
    forms = [form for _, m, _ in layers if isinstance(form := form_of(m), (VQWeight, Int8Weight))]
    if not forms:
        raise ModelError(f"model {type(root).__name__} has no compressed weight to read off; call cluster_ first")
    recipe = forms[0].recipe
    codebooks: dict[str, Codebook] = {}
    out = tuple(_read_layer(name, module, role, codebooks) for name, module, role in layers)
    state = {**_dense_state(layers), **_other_state(root)}
    tensors = {name: _stored(name, tensor, recipe) for name, tensor in state.items()}
    return CompressedModel(recipe, out, codebooks, tensors, dict(provenance or {}))


def install_(model: nn.Module, compressed: CompressedModel, *, dense: bool = False) -> nn.Module:
    """Put a compressed network on a model of the same architecture.

    Args:
        model: changed in place; its weights, pruned and compressed ones too, are replaced.
        compressed: the network.
        dense: decode to plain dense weights, for inference without the parametrizations. By default they go
            on, and nothing is lost: `extract` gives back an equal network, and fine-tuning can go on.

    Returns:
        The model.

    Raises:
        ModelError: listing every missing, unexpected and mismatched layer and tensor; the model is untouched
            then. Also for a model wrapped in DDP.
    """
    root = _installable(model)
    if dense:
        by_name = {layer.name: layer for layer in compressed.layers}
        return install_dense(
            model, compressed.layers, compressed.tensors, lambda name: compressed.dense_weight(by_name[name])
        )
    modules = _check_fit(root, compressed.layers, compressed.tensors)
    check_tied(root, [layer.name for layer in compressed.layers if not isinstance(layer, DenseLayer)])
    learned: dict[str, LearnedCodebook] = {}
    for layer in compressed.layers:
        module = modules[layer.name]
        if isinstance(layer, DenseLayer):
            _set_dense(module, compressed.tensors[f"{layer.name}.weight"])
        elif isinstance(layer, Int8Layer):
            _set_dense(module, layer.dense())
            scales = torch.tensor(layer.scales, dtype=torch.float32, device=_like(module).device)
            attach(module, Int8Weight(layer.name, compressed.recipe, scales))
        else:
            _attach_vq(module, layer, compressed, learned)
    _set_state(root, compressed.tensors)
    return model


def install_dense(
    model: nn.Module,
    layers: Iterable[LayerShape],
    tensors: Mapping[str, NDArray],
    decode: Callable[[str], NDArray[np.floating]],
) -> nn.Module:
    """Put decoded weights on a model as plain parameters.

    Args:
        model: changed in place.
        layers: every convolution and linear layer of the network: name, kind and shape.
        tensors: all other state by `state_dict` name.
        decode: dense weight of a layer by its name; not called unless everything fits.

    Returns:
        The model.

    Raises:
        ModelError: as `install_`.
    """
    root = _installable(model)
    layers = tuple(layers)
    for name, module in _check_fit(root, layers, tensors).items():
        _set_dense(module, decode(name))
    _set_state(root, tensors)
    return model


def _installable(model: nn.Module) -> nn.Module:
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ModelError(
            f"install_ on a model inside {type(model).__name__}: the wrapper would not see the new parameters; "
            f"install on model.module first and wrap it afterwards"
        )
    return unwrap(model)


def _set_state(root: nn.Module, tensors: Mapping[str, NDArray]) -> None:
    with torch.no_grad():
        for name, tensor in _other_state(root).items():
            tensor.copy_(_tensor(tensors[name]))


def _read_layer(name: str, module: nn.Module, role: Role, codebooks: dict[str, Codebook]) -> Layer:
    form, what = form_of(module), kind(module)
    if isinstance(form, VQWeight):
        key = form.codebook.key
        if key not in codebooks:
            codebooks[key] = form.codebook.codebook()
        return VQLayer(
            name=name,
            kind=what,
            role=role,
            shape=form.shape,
            pattern=form.pattern,
            d=form.d,
            codewords=form.codewords,
            codebook=key,
            n_codewords=form.n_codewords,
            assignments=_numpy(form.assignments).astype(index_dtype(form.n_codewords)),
            mask_ids=_numpy(form.mask_ids).astype(index_dtype(form.pattern.n_masks)),
            masked_sse=form.masked_sse,
            total_sse=form.total_sse,
        )
    if isinstance(form, Int8Weight):
        return Int8Layer(name, what, role, _numpy(form.codes(dense_weight(module))), np.array(_numpy(form.scales)))
    if isinstance(form, NMMask):
        raise ModelError(f"layer {name!r} is pruned but not clustered; call cluster_ before reading the model off")
    if "weight" not in module._parameters:
        raise ModelError(
            f"layer {name!r}: its weight is computed (weight_norm, pruning or another parametrization) and "
            "has no place "
            f"in a compressed model; make it a plain parameter first"
        )
    return DenseLayer(name, what, role, tuple(module._parameters["weight"].shape))  # type: ignore[union-attr]


def _other_state(root: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` without the weights of convolutions and linear layers, under any name they go by."""
    ours = tuple(
        f"{name}.{part}" if name else part
        for name, module in root.named_modules(remove_duplicate=False)
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for part in ("weight", "parametrizations.weight.")
    )
    exact = {prefix for prefix in ours if not prefix.endswith(".")}
    inside = tuple(prefix for prefix in ours if prefix.endswith("."))
    state = root.state_dict()
    return {name: t for name, t in state.items() if name not in exact and not name.startswith(inside)}


def _dense_state(layers: list[tuple[str, nn.Module, Role]]) -> dict[str, Tensor]:
    return {f"{name}.weight": dense_weight(module) for name, module, _ in layers if form_of(module) is None}


def _stored(name: str, value: Any, recipe: Recipe) -> NDArray:
    if not isinstance(value, Tensor):
        raise ModelError(
            f"state {name!r} is a {type(value).__name__}, only tensors can be stored; drop its extra state"
        )
    if not value.dtype.is_floating_point:
        return np.array(_numpy(value))
    exact = _numpy(value.float() if value.dtype in (torch.bfloat16, torch.float16) else value)
    with np.errstate(over="ignore"):
        out = exact.astype(recipe.other_dtype)
    n_lost = int((np.isfinite(exact) & ~np.isfinite(out)).sum())
    if n_lost:
        raise ModelError(
            f"tensor {name!r}: {n_lost} of {exact.size} values do not fit {recipe.other_dtype}; "
            f"set other_dtype='float32' in the recipe"
        )
    return out


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()


def _like(module: nn.Module) -> Tensor:
    """A tensor of the weight's shape, dtype and device; its values mean nothing."""
    form = form_of(module)
    if isinstance(form, VQWeight):
        return form._like.new_empty(()).expand(form.shape)
    return dense_weight(module)


def _tensor(array: NDArray) -> Tensor:
    """A copy: torch warns of arrays it may not write to."""
    return torch.from_numpy(np.array(array, order="C"))


def _set_dense(module: nn.Module, array: NDArray) -> None:
    """Make the weight plain, with these values; a parameter that is plain already stays the same object."""
    values = _tensor(array)
    plain = module._parameters.get("weight")
    if plain is not None:
        with torch.no_grad():
            plain.copy_(values)
    else:
        like = _like(module)
        detach(module, values.to(like.device, like.dtype))


def _attach_vq(
    module: nn.Module, layer: VQLayer, compressed: CompressedModel, learned: dict[str, LearnedCodebook]
) -> None:
    like = _like(module)
    if layer.codebook not in learned:
        codebook = compressed.codebooks[layer.codebook]
        learned[layer.codebook] = LearnedCodebook.from_codebook(layer.codebook, codebook, like.device)
    spec = LayerRecipe(pattern=layer.pattern, d=layer.d, n_codewords=layer.n_codewords, codewords=layer.codewords)
    form = VQWeight(
        layer.name,
        compressed.recipe,
        learned[layer.codebook],
        spec=spec,
        weight=like,
        assignments=layer.assignments,
        mask_ids=layer.mask_ids,
        sse=(layer.masked_sse, layer.total_sse),
    )
    form.count_members()
    if form_of(module) is not None:
        detach(module, like)
    attach(module, form)


def _check_fit(root: nn.Module, layers: Iterable[LayerShape], tensors: Mapping[str, NDArray]) -> dict[str, nn.Module]:
    """The model's modules by layer name, in the order of the layers."""
    modules = {name: module for name, module, _ in eligible_layers(root)}
    state = _other_state(root)
    stored_layers = {layer.name: layer for layer in layers}
    weights = {f"{name}.weight" for name in stored_layers}
    stored = {name: t for name, t in tensors.items() if name not in weights}
    faults = [f"layer {n!r} is missing from the file" for n in modules if n not in stored_layers]
    faults += [f"layer {n!r} is not in the model" for n in stored_layers if n not in modules]
    faults += [f"tensor {n!r} is missing from the file" for n in state if n not in stored]
    faults += [f"tensor {n!r} is not in the model" for n in stored if n not in state]
    faults += [f for n, layer in stored_layers.items() if n in modules for f in _layer_faults(layer, modules[n])]
    for name in state:
        if name in stored and tuple(state[name].shape) != stored[name].shape:
            faults.append(
                f"tensor {name!r} is {stored[name].shape} in the file, {tuple(state[name].shape)} in the model"
            )
    if faults:
        raise ModelError("the compressed network does not fit the model:\n  " + "\n  ".join(faults))
    return {name: modules[name] for name in stored_layers}


def _layer_faults(layer: LayerShape, module: nn.Module) -> list[str]:
    name = layer.name
    if form_of(module) is None and "weight" not in module._parameters:
        return [f"layer {name!r} has a computed weight (weight_norm or another parametrization)"]
    like, what = _like(module), kind(module)
    if what != layer.kind or tuple(like.shape) != tuple(layer.shape):
        return [
            f"layer {name!r} is {layer.kind} {tuple(layer.shape)} in the file, {what} {tuple(like.shape)} in the model"
        ]
    if like.is_meta:
        return [f"layer {name!r} is on the meta device; move the model with to_empty first"]
    return []
