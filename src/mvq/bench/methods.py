"""The methods that are compared, each a way from a trained network to a compressed one of a given size."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mvq.allocate import allocate_untrained, fit_codewords
from mvq.baselines import cluster_conventional
from mvq.errors import ConfigError
from mvq.nn import cluster_
from mvq.nn.assignments import SPACINGS
from mvq.outputs import Score
from mvq.patterns import Pattern
from mvq.recipe import Recipe
from mvq.tasks.imports import import_callable, is_import_spec

_MVQ = "MVQ, ASPLOS 2025, arXiv 2412.10261"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a method is asked for.

    Attributes:
        recipe: layers, scope, pattern and d; its number of codewords is to be fitted.
        target_bits: of the compressed layers, at most.
        calibration: batches of training images.
        seed: of the method's random choices.
        score: as in `mvq.allocate.fisher`, of outputs that are not logits.
    """

    recipe: Recipe
    target_bits: int
    calibration: Iterable[Any] = ()
    seed: int = 0
    score: Score | None = None


def no_masks(model: nn.Module, point: Point) -> None:
    """No sparse training."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to compress.

    Attributes:
        name: in studies and rows.
        label: for people.
        source: where it was published.
        compress: `(model, point)` to the model, changed in place; the model is dense, or was trained with
            masks and made plain again. Where it leaves assignments soft, fine-tuning learns them, too.
        masks: `(dense model, point)` to the recipe whose masks the sparse training uses, or None for none.
        clusters: whether its errors right after clustering are comparable with those of others.
        settings: whatever else decides its rows, as text.
    """

    name: str
    label: str
    source: str
    compress: Callable[[nn.Module, Point], nn.Module]
    masks: Callable[[nn.Module, Point], Recipe | None] = no_masks
    clusters: bool = False
    settings: str = ""

    @property
    def uses_masks(self) -> bool:
        """Whether part of its budget is sparse training."""
        return self.masks is not no_masks


def own_masks(model: nn.Module, point: Point) -> Recipe:
    """Masks of the pattern that is asked for."""
    return point.recipe


#: Settings of methods that learn assignments.
LEARNED = f"learned every step, {SPACINGS:g} spacings a unit"


def _masked(name: str, label: str, source: str = _MVQ, *, soft: bool = False, **changes: Any) -> Method:
    """One that keeps its masks; `changes` are those of the recipe, `soft` as in `cluster_`."""

    def compress(model: nn.Module, point: Point) -> nn.Module:
        return cluster_(model, fit_codewords(model, replace(point.recipe, **changes), point.target_bits), soft=soft)

    settings = LEARNED if soft else ""
    return Method(
        name=name, label=label, source=source, compress=compress, masks=own_masks, clusters=True, settings=settings
    )


def _conventional(name: str, label: str, masks: Callable[[nn.Module, Point], Recipe | None]) -> Method:
    """A case of the paper's ablation that is decoded dense, with subvectors that suit the network."""

    def compress(model: nn.Module, point: Point) -> nn.Module:
        return cluster_conventional(model, point.recipe, point.target_bits)

    return Method(name=name, label=label, source=_MVQ, compress=compress, masks=masks, clusters=True)


def _allocated(model: nn.Module, point: Point) -> nn.Module:
    """Pruned or not layer by layer, with subvectors to match; all steps fine-tune, and assignments are learned.

    For budgets too small to train a pruned network.
    """
    recipe = allocate_untrained(model, point.recipe, point.calibration, point.target_bits, score=point.score)
    return cluster_(model, recipe, soft=True)


def _rival(
    name: str,
    label: str,
    source: str,
    *,
    masks: str | None = None,
    more: Callable[[Any], dict[str, Any]] | None = None,
    settings: str = "",
) -> Method:
    """`mvq.baselines.NAME.NAME_`, imported when used.

    `masks` names its function that gives a pattern, `more` gives further arguments from its module; `settings` tells
    its defaults where another choice gave other rows.
    """

    def module() -> Any:
        return importlib.import_module(f"mvq.baselines.{name}")

    def compress(model: nn.Module, point: Point) -> nn.Module:
        compress_ = getattr(module(), f"{name}_")
        options = {} if more is None else more(module())
        return compress_(
            model, point.recipe, point.target_bits, calibration=point.calibration, seed=point.seed, **options
        )

    def pruned(model: nn.Module, point: Point) -> Recipe | None:
        pattern = Pattern.parse(getattr(module(), str(masks))(model, point.recipe, point.target_bits))
        return None if pattern.is_dense else replace(point.recipe, pattern=pattern, d=pattern.group)

    masks_of = no_masks if masks is None else pruned
    return Method(name=name, label=label, source=source, compress=compress, masks=masks_of, settings=settings)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="allocated",
            label="mvq, layers allocated (this library)",
            source="this library",
            compress=_allocated,
            clusters=True,
            settings=LEARNED,
        ),
        _masked("ours", "mvq, layers pruned (this library)", "this library", codewords="packed", soft=True),
        _masked("D", "MVQ (masked)"),
        _masked("packed", "MVQ, packed codewords", codewords="packed"),
        _conventional("A", "VQ of dense weights", no_masks),
        _conventional("B", "VQ of sparse weights", own_masks),
        _masked("C", "VQ of sparse weights, masked decode", kmeans="plain"),
        _rival(
            "bgd",
            "BGD",
            "Stock et al., ICLR 2020, arXiv 1907.05686",
            # Its training layer by layer comes on top of the budget; at the authors' 100 steps a layer it would be many
            # times the budget of all others.
            more=lambda bgd: {"options": bgd.BgdOptions(layer_steps=4)},
        ),
        _rival("pqf", "PQF", "Martinez et al., CVPR 2021, arXiv 2010.15703"),
        _rival("dkm", "DKM", "Cho et al., ICLR 2022, arXiv 2108.12659", settings="tau 0.2"),
        _rival("ssvq", "SSVQ", "arXiv 2503.08668", settings="alpha 0.4"),
        _rival("uniform", "uniform quantization", "LSQ, Esser et al., ICLR 2020, arXiv 1902.08153"),
        _rival(
            "int8_nm",
            "int8 and N:M pruning",
            "SR-STE, Zhou et al., ICLR 2021, arXiv 2102.04010",
            masks="int8_nm_pattern",
        ),
    )
}


def find(name: str) -> Method:
    """A method by name, or from `package.module:callable`.

    Raises:
        ConfigError: if there is none.
    """
    if name in METHODS:
        return METHODS[name]
    if is_import_spec(name):
        method = import_callable(name, ConfigError)()
        if isinstance(method, Method):
            return method
        raise ConfigError(f"method {name!r} gave a {type(method).__name__}, expected a mvq.bench.Method")
    raise ConfigError(f"method {name!r} is not known; known are {', '.join(METHODS)}, or package.module:callable")
