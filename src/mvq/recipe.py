"""Recipes: everything that decides how a model is compressed, as one frozen value.

A `Recipe` holds the defaults for all layers, a policy for the layers that are special (first convolution,
classifier, depth-wise convolutions) and overrides by layer-name glob. `Recipe.resolve` turns it into one
`LayerRecipe` a layer. Dictionaries round-trip exactly; TOML is read at the command line only.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mvq.errors import ConfigError
from mvq.patterns import Pattern

Codewords = Literal["masked", "packed"]
Treatment = Literal["compress", "int8", "skip"]
Role = Literal["first_conv", "conv", "depthwise", "linear", "classifier"]

SCHEMA_VERSION = 1
_DEFAULT_PATTERN = Pattern(4, 16)
MAX_D = 256
MAX_CODEWORDS = 65536
_CHOICES: dict[str, tuple[str, ...]] = {
    "codewords": ("masked", "packed"),
    "kmeans": ("masked", "plain"),
    "scope": ("layer", "network"),
    "init": ("random", "k-means++"),
    "other_dtype": ("float32", "float16"),
    "treatment": ("compress", "int8", "skip"),
    "first_conv": ("compress", "int8", "skip"),
    "classifier": ("compress", "int8", "skip"),
    "depthwise": ("compress", "int8", "skip"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "d": (1, MAX_D),
    "n_codewords": (1, MAX_CODEWORDS),
    "max_iters": (1, 100_000),
    "n_init": (1, 1000),
    "rows_per_codeword": (0, 1_000_000),
    "seed": (0, 2**63 - 1),
    "tol": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecipe:
    """What is done to one layer's weight.

    Attributes:
        treatment: `compress` (masked vector quantization), `int8` (per-output-channel symmetric) or `skip`
            (left as is).
        pattern: N:M pattern along output channels.
        d: lanes of a subvector; a multiple of M.
        n_codewords: codebook size; an upper limit where the recipe's `rows_per_codeword` is set.
        codewords: `masked` (d values, multiplied by the mask) or `packed` (the Q kept values in lane order).
        kmeans: `masked` ignores pruned lanes; `plain` is common k-means, which fits pruned lanes as zeros (a
            baseline).
    """

    treatment: Treatment = "compress"
    pattern: Pattern = _DEFAULT_PATTERN
    d: int = 16
    n_codewords: int = 512
    codewords: Codewords = "masked"
    kmeans: Literal["masked", "plain"] = "masked"

    def __post_init__(self) -> None:
        _raise_all(_parse_pattern(self, "layer recipe") + _faults(self, "layer recipe"))

    @property
    def width(self) -> int:
        """Values of one stored codeword: d if masked, Q = N/M*d if packed."""
        return self.pattern.kept_per(self.d) if self.codewords == "packed" else self.d


_LAYER_KEYS = tuple(f.name for f in fields(LayerRecipe))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to compress a model.

    Attributes:
        pattern: N:M pattern along output channels, `"4:16"` or a `Pattern`.
        d: lanes of a subvector, a multiple of M.
        n_codewords: codewords of a codebook.
        codewords: `masked` or `packed`.
        kmeans: `masked`, or `plain` for the conventional baseline.
        scope: one codebook a `layer`, or one for the `network` (one for each distinct codeword kind, width and
            size): masked codewords serve layers of equal d, packed ones layers of equal Q, whatever their patterns.
        first_conv: treatment of the first convolution.
        classifier: treatment of the last linear layer.
        depthwise: treatment of depth-wise convolutions.
        overrides: `{glob: {field: value}}` applied to layer names in order, later ones win; a glob that
            matches no layer is an error. Fields are those of `LayerRecipe`.
        rows_per_codeword: with scope `layer`, a layer that has fewer subvectors per codeword than this gets
            the largest power of two of codewords that satisfies it (at least 1); 0 switches that off, and
            then a codebook larger than the number of distinct subvectors is an error.
        init: `k-means++` or `random` rows.
        max_iters: most k-means iterations.
        tol: stop when at most this share of assignments changes in an iteration.
        n_init: restarts; the best is kept.
        other_dtype: stored type of everything that is not compressed (batch norm, biases, skipped weights).
        seed: seeds every random choice.

    Raises:
        ConfigError: listing every fault at once.
    """

    pattern: Pattern | str = _DEFAULT_PATTERN
    d: int = 16
    n_codewords: int = 512
    codewords: Codewords = "masked"
    kmeans: Literal["masked", "plain"] = "masked"
    scope: Literal["layer", "network"] = "layer"
    first_conv: Treatment = "int8"
    classifier: Treatment = "compress"
    depthwise: Treatment = "int8"
    overrides: Any = ()
    rows_per_codeword: int = 4
    init: Literal["random", "k-means++"] = "k-means++"
    max_iters: int = 100
    tol: float = 1e-3
    n_init: int = 1
    other_dtype: Literal["float32", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        faults = _parse_pattern(self, "recipe") + _faults(self, "recipe")
        overrides, wrong = _normalise_overrides(self.overrides)
        object.__setattr__(self, "overrides", overrides)
        faults += wrong
        if not faults:
            for glob, changes in self.overrides:
                try:
                    replace(self._base(), **dict(changes))
                except ConfigError as error:
                    faults.append(f"override {glob!r}: {error}")
        _raise_all(faults)

    def _base(self) -> LayerRecipe:
        return LayerRecipe(
            **{k: getattr(self, k) for k in _LAYER_KEYS if k != "treatment"},
        )

    def resolve(self, layers: Sequence[tuple[str, Role]]) -> dict[str, LayerRecipe]:
        """The `LayerRecipe` of every layer.

        Args:
            layers: `(name, role)` of every convolution and linear layer, in module order.

        Raises:
            ConfigError: if an override's glob matches no layer, or the overrides of a layer contradict one
                another.
        """
        names = [name for name, _ in layers]
        for glob, _ in self.overrides:
            if not any(fnmatch.fnmatchcase(name, glob) for name in names):
                raise ConfigError(
                    f"override {glob!r} matches none of the {len(names)} layers; names look like "
                    f"{', '.join(repr(n) for n in names[:3])}"
                )
        resolved = {}
        for name, role in layers:
            policy = {
                "first_conv": self.first_conv,
                "classifier": self.classifier,
                "depthwise": self.depthwise,
            }
            layer = replace(self._base(), treatment=policy.get(role, "compress"))
            changes: dict[str, Any] = {}
            for glob, more in self.overrides:
                if fnmatch.fnmatchcase(name, glob):
                    changes.update(more)
            try:
                resolved[name] = replace(layer, **changes)
            except ConfigError as error:
                raise ConfigError(f"layer {name!r}: its overrides do not go together: {error}") from None
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON/TOML types; `Recipe.from_dict` gives back an equal recipe."""
        out: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for f in fields(self):
            out[f.name] = getattr(self, f.name)
        out["pattern"] = str(self.pattern)
        out["overrides"] = {
            glob: {k: str(v) if k == "pattern" else v for k, v in changes} for glob, changes in self.overrides
        }
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read `to_dict`'s form. A key `preset` starts from that preset.

        Raises:
            ConfigError: on unknown keys, an unknown preset or schema version, or invalid values.
        """
        values = dict(data)
        version = values.pop("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise ConfigError(f"recipe: schema_version {version!r} is not known; this version reads {SCHEMA_VERSION}")
        base = cls.preset(values.pop("preset")) if "preset" in values else cls()
        known = [f.name for f in fields(cls)]
        unknown = [k for k in values if k not in known]
        if unknown:
            raise ConfigError(
                f"recipe: unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(known)}"
            )
        return replace(base, **values)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A named recipe, see `PRESETS`.

        Raises:
            ConfigError: if the name is unknown.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"preset {name!r} is not known; known are {', '.join(PRESETS)}")
        return PRESETS[name]


def _parse_pattern(recipe: Any, where: str) -> list[str]:
    """Replace a written pattern by a `Pattern`; the fault where that is impossible."""
    try:
        object.__setattr__(recipe, "pattern", Pattern.parse(recipe.pattern))
    except ConfigError as error:
        return [f"{where}: {error}"]
    return []


def _normalise_overrides(
    overrides: Any,
) -> tuple[tuple[tuple[str, tuple[tuple[str, Any], ...]], ...], list[str]]:
    """Overrides as nested tuples, and what is wrong with them."""
    items = list(overrides.items()) if isinstance(overrides, Mapping) else overrides
    out: dict[str, tuple[tuple[str, Any], ...]] = {}
    faults = []
    try:
        pairs = [(str(glob), dict(changes)) for glob, changes in items]
    except (TypeError, ValueError):
        return (), [f"recipe: overrides={overrides!r} is not a table of {{glob: {{field: value}}}}"]
    for glob, changes in pairs:
        unknown = [k for k in changes if k not in _LAYER_KEYS]
        if unknown:
            faults.append(
                f"override {glob!r}: unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(_LAYER_KEYS)}"
            )
        if glob in out:
            faults.append(f"override {glob!r}: given twice; merge the two")
        if "pattern" in changes:
            try:
                changes["pattern"] = Pattern.parse(changes["pattern"])
            except ConfigError as error:
                faults.append(f"override {glob!r}: {error}")
        out[glob] = tuple(sorted(changes.items()))
    return tuple(out.items()), faults


def _faults(recipe: Any, where: str) -> list[str]:
    faults = []
    for name in (f.name for f in fields(recipe)):
        value = getattr(recipe, name)
        if name in _CHOICES and value not in _CHOICES[name]:
            faults.append(f"{where}: {name}={value!r} is not one of {', '.join(_CHOICES[name])}")
        if name in _RANGES:
            low, high = _RANGES[name]
            kinds = (int, float) if isinstance(low, float) else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                faults.append(f"{where}: {name}={value!r} is not in {low}..{high}")
    if not faults and isinstance(recipe.pattern, Pattern) and recipe.d % recipe.pattern.group:
        faults.append(
            f"{where}: d={recipe.d} is not a multiple of M={recipe.pattern.group} of pattern "
            f"{recipe.pattern}; choose d among multiples of {recipe.pattern.group}"
        )
    return faults


def _raise_all(faults: list[str]) -> None:
    if faults:
        raise ConfigError("\n".join(faults))


#: `mvq-16x` .. `mvq-25x` use the published settings (codebook a layer, classifier compressed like the rest;
#: ratios are those of a ResNet-18's compressed convolutions); `*-packed` are ours: packed codewords, twice
#: the codewords at equal total bits; `vq-*` are conventional vector quantization (dense, common k-means).
#: `mvq-maskrcnn` and `mvq-deeplab` are those of the paper's Mask R-CNN (75% sparse, by ASP) and DeepLab-V3 (50%). Of
#: torchvision's Mask R-CNN the layers that give scores and boxes become int8: they are 1% of the weights, and which of
#: them the paper compresses is not stated. In DeepLab-V3 all but the first and depth-wise convolutions are compressed.
PRESETS: dict[str, Recipe] = {
    "mvq-16x": Recipe(pattern="1:2", d=8, n_codewords=512),
    "mvq-19x": Recipe(pattern="1:2", d=8, n_codewords=256),
    "mvq-22x": Recipe(pattern="4:16", d=16, n_codewords=512),
    "mvq-25x": Recipe(pattern="4:16", d=16, n_codewords=256),
    "mvq-28x": Recipe(pattern="3:16", d=16, n_codewords=256),
    "mvq-16x-packed": Recipe(pattern="1:2", d=8, n_codewords=1024, codewords="packed"),
    "mvq-22x-packed": Recipe(pattern="4:16", d=16, n_codewords=1024, codewords="packed"),
    "mvq-25x-packed": Recipe(pattern="4:16", d=16, n_codewords=512, codewords="packed"),
    "mvq-maskrcnn": Recipe(
        pattern="4:16",
        d=16,
        n_codewords=512,
        overrides={
            "rpn.head.cls_logits": {"treatment": "int8"},
            "*.bbox_pred": {"treatment": "int8"},
            "*.cls_score": {"treatment": "int8"},
            "*.mask_fcn_logits": {"treatment": "int8"},
        },
    ),
    "mvq-deeplab": Recipe(pattern="1:2", d=8, n_codewords=512),
    "vq-22x": Recipe(pattern="1:1", d=8, n_codewords=1024, kmeans="plain"),
}
