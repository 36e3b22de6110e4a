"""One-shot compression with what unlabelled images can win back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mvq.errors import DataError, ModelError
from mvq.nn import as_recipe, cluster_, prune_, unwrap
from mvq.nn.layers import attach, form_of, plan
from mvq.nn.parametrizations import NMMask, VQWeight
from mvq.nn.precision import mixed
from mvq.outputs import Loss, Score
from mvq.progress import track
from mvq.recipe import Recipe
from mvq.recover.batchnorm import match_statistics_
from mvq.recover.blocks import Block, cut, modules_of
from mvq.recover.compensate import assign_compensated_, prune_compensated, set_weight_
from mvq.recover.config import PARTS, RecoverConfig, check_parts
from mvq.recover.importance import prune_by_importance_, weight_importance
from mvq.recover.permute import permute_
from mvq.recover.reconstruct import as_input, distill_, reconstruct_
from mvq.recover.statistics import Moments, input_columns, input_energies, output_curvature

_PROBE_IMAGES = 2
#: Images whose statistics batch norm is matched to, at once.
_MATCH_IMAGES = 128
#: Kept beside the images: the block's input in both networks, and its target.
_CACHES = 3


def recover(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    calibration: Iterable[Any],
    *,
    parts: Sequence[str] = PARTS,
    config: RecoverConfig | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> nn.Module:
    """Prune and cluster a network, and win back from unlabelled images what that loses.

    In place of `prune_` and `cluster_`: `recover_pruned_`, then `recover_clustered_`. Parts, each of which can be left
    out:

    * `importance`: masks and codewords weigh errors by the Fisher diagonal.
    * `permute`: channels are reordered for the masks, which changes no output.
    * `compensate`: masks and assignments are chosen in column order, each error passed on to later columns.
    * `batchnorm`: outputs get back their means and standard deviations.
    * `reconstruct`: blocks, one after the other, are trained towards the dense network's activations.
    * `distill`: the whole network is trained towards the dense network's outputs.

    Without any part this is `cluster_(prune_(model, recipe), recipe)`.

    Args:
        model: dense; changed in place.
        recipe: a `Recipe`, a preset name or a dictionary.
        calibration: batches of images, or of `(images, anything)`; labels are not looked at.
        parts: any of `PARTS`.
        config: how much work is done; defaults to `RecoverConfig()`.
        score: `(outputs, generator)` to the summed negative log-likelihood of targets drawn from the outputs, as
            `mvq.allocate.fisher` takes it, by which `importance` and `compensate` weigh output channels. By default
            for scores `(n, classes)`; of all other outputs every value counts alike.
        loss: `(outputs, outputs of the dense network)` to what `distill` makes small, for outputs whose distance is
            not what counts, such as a detector's; by default `mvq.outputs.output_loss`. Classes at every pixel have
            `score_and_loss("segmentation")` there.
        progress: show bars.

    Returns:
        The model, clustered, in the modes it was in. The same model, recipe, images, config and number of threads give
        the same result.

    Raises:
        ConfigError: on an unknown part or an invalid recipe.
        DataError: if the calibration holds no images, or NaN or infinite ones.
        ModelError: as `prune_` and `cluster_`; with `permute` if torch.fx cannot trace the model; if activations or a
            loss become NaN or infinite.
    """
    recipe, chosen, config = as_recipe(recipe), check_parts(parts), config or RecoverConfig()
    images = [gather(calibration, config.images)] if chosen else []
    options: Any = {"parts": chosen, "config": config, "score": score, "loss": loss, "progress": progress}
    dense = recover_pruned_(model, recipe, images, **options)
    return recover_clustered_(model, recipe, images, dense=dense, **options)


def recover_pruned_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    calibration: Iterable[Any],
    *,
    parts: Sequence[str] = PARTS,
    config: RecoverConfig | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> nn.Module:
    """The first half of `recover`: prune, and repair what that did.

    Args:
        model: dense; changed in place. Its masks stay on it.
        recipe: as in `recover`; says nothing of codewords here.
        calibration: as in `recover`.
        parts: as in `recover`.
        config: as in `recover`; `prune_steps` and `prune_epochs` count.
        score: as in `recover`.
        loss: as in `recover`.
        progress: show bars.

    Returns:
        The dense network as it was, but for its channels, which are in the order of the pruned one's.

    Raises:
        ConfigError: as `recover`.
        DataError: as `recover`.
        ModelError: as `recover`.
    """
    recipe, chosen, config = as_recipe(recipe), check_parts(parts), config or RecoverConfig()
    if not chosen:
        dense = copy.deepcopy(unwrap(model))
        prune_(model, recipe)
        return dense
    if all(layer.pattern.is_dense for _, _, layer in plan(unwrap(model), recipe) if layer.treatment == "compress"):
        return copy.deepcopy(unwrap(model))  # nothing to prune, nothing to repair
    images = gather(calibration, config.images)
    with _evaluating(model):
        if "permute" in chosen:
            permute_(unwrap(model), recipe, rounds=config.permute_rounds, seed=config.seed)
        dense = copy.deepcopy(unwrap(model))
        facts = _facts(dense, recipe, images, chosen, config, score)
        if "compensate" not in chosen:
            _prune_(model, recipe, facts)
        if _repairs(chosen):
            walk = _Walk(unwrap(model), dense, recipe, images, chosen, config, facts, loss)
            walk.run("pruning", config.prune_steps, config.prune_epochs, progress)
    return dense


def recover_clustered_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    calibration: Iterable[Any],
    *,
    dense: nn.Module,
    parts: Sequence[str] = PARTS,
    config: RecoverConfig | None = None,
    score: Score | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> nn.Module:
    """The second half of `recover`: cluster, and repair what that did.

    Args:
        model: pruned; changed in place.
        recipe: as in `recover`.
        calibration: as in `recover`.
        dense: the network before pruning, with channels in the same order, as `recover_pruned_` returns it.
        parts: as in `recover`; `permute` does nothing here.
        config: as in `recover`; `block_steps` and `distill_epochs` count.
        score: as in `recover`.
        loss: as in `recover`.
        progress: show bars.

    Returns:
        The model.

    Raises:
        ConfigError: as `recover`.
        DataError: as `recover`.
        ModelError: as `recover`.
    """
    recipe, chosen, config = as_recipe(recipe), check_parts(parts), config or RecoverConfig()
    if not chosen:
        return cluster_(model, recipe, progress=progress)
    images = gather(calibration, config.images)
    with _evaluating(model), _evaluating(dense):
        facts = _facts(unwrap(dense), recipe, images, chosen, config, score)
        walk = _Walk(unwrap(model), unwrap(dense), recipe, images, chosen, config, facts, loss)
        if _repairs(chosen):
            walk.teacher = copy.deepcopy(unwrap(model))
        cluster_(model, recipe, importance=facts.importance, progress=progress)
        walk.run("clustering", config.block_steps, config.distill_epochs, progress)
    return model


def _repairs(parts: tuple[str, ...]) -> bool:
    """Whether the pruned network is brought close enough to the dense one to be what its clustered copy aims at."""
    return bool({"compensate", "reconstruct", "distill"} & set(parts))


def refine_(
    model: nn.Module,
    dense: nn.Module,
    calibration: Iterable[Any],
    *,
    parts: Sequence[str] = ("batchnorm", "reconstruct", "distill"),
    config: RecoverConfig | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> nn.Module:
    """The parts `batchnorm`, `reconstruct` and `distill` for a network that is compressed already, by whatever method.

    Args:
        model: compressed; changed in place.
        dense: the network it was, with channels in the same order.
        calibration: as in `recover`.
        parts: of these three.
        config: as in `recover`; `block_steps` and `distill_epochs` count.
        loss: as in `recover`.
        progress: show bars.

    Returns:
        The model.

    Raises:
        ConfigError: on another part.
        DataError: as in `recover`.
        ModelError: if a loss becomes NaN or infinite.
    """
    chosen, config = check_parts(parts), config or RecoverConfig()
    images = gather(calibration, config.images)
    with _evaluating(model), _evaluating(dense):
        walk = _Walk(unwrap(model), unwrap(dense), None, images, chosen, config, _Facts({}, None), loss)
        walk.run("refining", config.block_steps, config.distill_epochs, progress)
    return model


def gather(calibration: Iterable[Any], limit: int) -> Tensor:
    """The first images of a loader, as one float16 tensor `(n, C, H, W)`.

    Raises:
        DataError: if there is none, or a value is NaN or infinite, or they differ in shape.
    """
    found: list[Tensor] = []
    n = 0
    for batch in calibration:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise DataError(
                f"calibration yields {type(x).__name__} where images are expected; "
                f"give batches of floating-point tensors, or pairs whose first part is one"
            )
        found.append(x[: limit - n].detach().cpu().half())
        n += len(found[-1])
        if n >= limit:
            break
    if n == 0:
        raise DataError("calibration holds no images; give at least one batch, and no used-up iterator")
    if any(x.shape[1:] != found[0].shape[1:] for x in found):
        shapes = sorted({tuple(x.shape[1:]) for x in found})
        raise DataError(f"calibration images differ in shape, {shapes[0]} and {shapes[1]}; resize them to one shape")
    images = torch.cat(found)
    n_bad = int(images.numel() - torch.isfinite(images).sum())
    if n_bad:
        raise DataError(f"calibration: {n_bad} of {images.numel()} values are NaN or beyond float16; clean the images")
    return images


@dataclass(frozen=True)
class _Facts:
    """What the dense network tells about its layers.

    Attributes:
        curvature: `(Cout,)` by layer name, where known.
        importance: by layer name, shaped like the weights; None where all weights count alike.
    """

    curvature: dict[str, Tensor]
    importance: dict[str, Tensor] | None


def _facts(
    dense: nn.Module,
    recipe: Recipe,
    images: Tensor,
    parts: tuple[str, ...],
    config: RecoverConfig,
    score: Score | None,
) -> _Facts:
    if "importance" not in parts:
        return _Facts({}, None)
    modules = {name: module for name, module, layer in plan(dense, recipe) if layer.treatment == "compress"}
    batches = [x.float() for x in images[: config.fisher_images].split(config.batch_size)]
    curvature = output_curvature(dense, modules, batches, score=score, seed=config.seed)
    energies = input_energies(dense, modules, batches, config.positions)
    return _Facts(curvature, {n: weight_importance(m, energies[n], curvature[n]) for n, m in modules.items()})


def _prune_(model: nn.Module, recipe: Recipe, facts: _Facts) -> None:
    if facts.importance is None:
        prune_(model, recipe)
    else:
        prune_by_importance_(unwrap(model), recipe, facts.importance)


class _Walk:
    """Goes through the blocks with the activations of both networks, and repairs each."""

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        recipe: Recipe | None,
        images: Tensor,
        parts: tuple[str, ...],
        config: RecoverConfig,
        facts: _Facts,
        loss: Loss | None,
    ) -> None:
        self.model, self.dense, self.teacher = model, dense, dense
        self.recipe, self.images, self.parts, self.config = recipe, images, parts, config
        self.facts, self.loss = facts, loss
        probe = images[:_PROBE_IMAGES].float()
        most = config.cache_bytes / _CACHES / len(images)
        self.blocks = cut(dense, probe, block_layers=config.block_layers, bytes_per_image=most)

    def run(self, what: str, steps: int, epochs: int, progress: bool) -> None:
        """Repair every block, then distil the whole."""
        inputs, teacher_inputs = self.images, self.images
        steps = steps if "reconstruct" in self.parts else 0
        for block in track(self.blocks, f"recovering from {what}", enabled=progress):
            targets = self._outputs(block, self.teacher, teacher_inputs)
            if "compensate" in self.parts:
                self._compensate(block, inputs, teacher_inputs)
            if "batchnorm" in self.parts:
                few = (x[:_MATCH_IMAGES].float() for x in (inputs, teacher_inputs))
                match_statistics_(block, self.model, self.teacher, *few)
            if steps and isinstance(targets, Tensor):
                reconstruct_(block, self.model, inputs, targets, steps=steps, config=self.config)
            if block is not self.blocks[-1]:
                inputs, teacher_inputs = self._outputs(block, self.model, inputs), targets
        if "distill" in self.parts and epochs:
            distill_(self.model, self.dense, self.images, epochs=epochs, config=self.config, loss=self.loss)

    def _outputs(self, block: Block, model: nn.Module, inputs: Tensor) -> Any:
        """Float16 outputs of a block; None where they are no tensor."""
        found = []
        with torch.no_grad(), mixed(self.config.autocast):
            for x in inputs.split(self.config.batch_size):
                y = block.run(model, as_input(x))
                if not isinstance(y, Tensor):
                    return None
                if not torch.isfinite(y).all():
                    raise ModelError(
                        f"recover: outputs of the block at {block.names[0]!r} are NaN or infinite; "
                        f"check the weights, and that the images are scaled as the network expects"
                    )
                found.append(y.float().clamp(-65504, 65504).half())
        return torch.cat(found)

    def _compensate(self, block: Block, inputs: Tensor, teacher_inputs: Tensor) -> None:
        assert self.recipe is not None
        specs = {name: spec for name, _, spec in plan(self.model, self.recipe)}
        for name, module in modules_of(block, self.model).items():
            spec, form = specs.get(name), form_of(module)
            if spec is None or spec.treatment != "compress":
                continue
            prunes = form is None and not spec.pattern.is_dense
            if not prunes and not isinstance(form, VQWeight):
                continue
            moments = self._moments(block, name, inputs, teacher_inputs)
            weight = self.teacher.get_submodule(name).weight.detach()  # type: ignore[union-attr,operator]
            curvature = self.facts.curvature.get(name, torch.ones(weight.shape[0]))
            damping = self.config.damping
            if isinstance(form, VQWeight):
                rounds = self.config.assign_rounds
                assign_compensated_(form, weight, moments, curvature, damping=damping, rounds=rounds)
            else:
                mask, kept = prune_compensated(weight, moments, spec.pattern, spec.d, curvature, damping)
                set_weight_(module, kept)
                attach(module, NMMask(name, self.recipe, spec.pattern, mask))

    def _moments(self, block: Block, name: str, inputs: Tensor, teacher_inputs: Tensor) -> Moments:
        """Moments of a layer's inputs in the compressed network, and of the teacher's with them."""
        ours, theirs = self.model.get_submodule(name), self.teacher.get_submodule(name)
        config = self.config
        moments = None
        size = config.batch_size
        for x, y in zip(inputs.split(size), teacher_inputs.split(size), strict=True):
            with mixed(config.autocast):
                seen = (
                    _input_of(block, self.model, ours, as_input(x)),
                    _input_of(block, self.teacher, theirs, as_input(y)),
                )
            pair = [input_columns(ours, x, config.positions) for x in seen]
            if moments is None:
                moments = Moments(pair[0].shape[2], config.max_columns)
            moments.add(pair[0], pair[1], n_images=len(seen[0]))
        assert moments is not None
        return moments


class _Reached(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


def _input_of(block: Block, model: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    handle = module.register_forward_pre_hook(take)
    try:
        with torch.no_grad():
            block.run(model, x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


class _evaluating:
    """`eval` mode for a while; the mode of every module is put back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.modes = {m: m.training for m in self.model.modules()}
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode
