"""What is compared with what: a frozen value, read from TOML at the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mvq
from mvq.errors import ConfigError
from mvq.nn import as_recipe
from mvq.patterns import Pattern
from mvq.recipe import Recipe
from mvq.recover import RecoverConfig
from mvq.tasks import TASKS

T = TypeVar("T")

#: Options of `mvq.train.finetune` that a phase may set; the rest is the budget's.
FINETUNE_KEYS = (
    "optimizer",
    "lr",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "codebook_lr",
    "train_other",
    "bn_eval",
    "ema",
    "grad_clip",
)
SPARSE_KEYS = (*FINETUNE_KEYS, "method", "decay")
_OVERRIDE_KEYS = {"recipe": (), "sparse": SPARSE_KEYS, "finetune": FINETUNE_KEYS}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network.

    Attributes:
        name: in rows and file names.
        model: `package.module:callable` giving the dense network; called with `folder` (where it may keep
            files) if it takes that by name.
        recipe: changes of the study's recipe for this network.
    """

    name: str
    model: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A point on the size axis.

    Attributes:
        ratio: float32 bits of the compressed layers' weights over their compressed bits.
        pattern: N:M pattern of the methods that prune.
        d: lanes of their subvectors.
        without: methods that cannot be so small.
        recipe: by method, changes of the recipe at this size, such as another pattern.
    """

    ratio: float
    pattern: str
    d: int
    without: tuple[str, ...] = ()
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Training that every method gets.

    Attributes:
        n_steps: optimizer steps in all.
        batch_size: images in a batch, in training and evaluation.
        sparse_share: part of the steps that methods with sparse training spend on it; the others fine-tune
            all the time.
        calibration_images: training images shown to methods that need activations.
        autocast: `bfloat16` or None.
    """

    n_steps: int
    batch_size: int = 128
    sparse_share: float = 0.5
    calibration_images: int = 512
    autocast: str | None = None

    def steps(self, *, sparse: bool) -> tuple[int, int]:
        """Steps of sparse training and of fine-tuning."""
        first = round(self.sparse_share * self.n_steps) if sparse else 0
        return first, self.n_steps - first


@dataclass(frozen=True, kw_only=True)
class Output:
    """Files, relative to the current folder.

    Attributes:
        rows: CSV of measured rows; per-image results lie beside it as `.npz`.
        work: folder of what can be made again: dense predictions, sparse-trained networks.
        report: Markdown file; the study owns the part between its markers.
        images: folder of plots.
        readme: file whose part between `<!-- bench:begin -->` and `<!-- bench:end -->` is a short table.
    """

    rows: str
    work: str
    report: str
    images: str
    readme: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """Networks x sizes x methods x seeds.

    Attributes:
        name: of the study, in file names and markers.
        title: heading of its report.
        about: a paragraph on networks and data for the report.
        task: as in `mvq.tasks.evaluate`.
        networks: what is compressed.
        train: training data, as in `mvq.tasks.load_data`; a callable may take `split`, `batch_size`, `seed`.
        evaluate: evaluation sets by name, the main one first.
        recipe: which layers are compressed or int8, scope; pattern, d and codewords come from the size.
        sizes: at which the methods are compared.
        methods: names from `mvq.bench.METHODS`, or `package.module:callable` giving a `Method`.
        seeds: one row each.
        budget: of training.
        sparse: options of sparse training.
        finetune: options of fine-tuning.
        distillation: `temperature` and `weight` of the dense network's outputs in the loss; None for labels
            alone. Other tasks than classification need it: there the loss is the distance to those outputs.
        loss: `package.module:callable` of another such distance, `(outputs, dense network's outputs)` to a scalar. Not
            for classification.
        score: `package.module:callable` that says what outputs mean which are not logits, as `mvq.allocate.fisher`
            takes it. Not for classification.
        recover: fields of `RecoverConfig`: before the sparse training `recover_pruned_` prunes and repairs what that
            did, on the calibration images. None: weights are pruned by their size, and training does the rest.
        overrides: by method, `recipe`, `sparse` and `finetune` tables of changes.
        reference: method that others are paired with.
        output: where results go.

    Raises:
        ConfigError: listing every fault at once.
    """

    name: str
    title: str
    about: str = ""
    task: str = "classification"
    networks: tuple[Network, ...]
    train: str
    evaluate: Mapping[str, str]
    recipe: Recipe
    sizes: tuple[Size, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    budget: Budget
    sparse: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, float] | None = None
    loss: str | None = None
    score: str | None = None
    recover: Mapping[str, Any] | None = None
    overrides: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    reference: str = "ours"
    output: Output

    def __post_init__(self) -> None:
        faults = _option_faults(self) + _size_faults(self)
        if faults:
            raise ConfigError("\n".join(f"study {self.name!r}: {fault}" for fault in faults))

    @property
    def setup(self) -> str:
        """Hash of what all rows share; rows of different setups are not comparable."""
        names = ("task", "train", "evaluate", "budget", "sparse", "finetune", "distillation")
        # Only where there are some: studies without them keep their rows.
        parts = [getattr(self, name) for name in names] + [
            one for one in (self.loss, self.score, self.recover) if one is not None
        ]
        parts = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts]  # pyright: ignore
        text = json.dumps([*parts, self.recipe.to_dict(), mvq.__version__], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def options(self, method: str, phase: str) -> dict[str, Any]:
        """Options of a phase, `sparse` or `finetune`, for a method."""
        return {**getattr(self, phase), **self.overrides.get(method, {}).get(phase, {})}

    def recipe_for(self, network: Network, size: Size, method: str, seed: int) -> Recipe:
        """The recipe a method starts from; its number of codewords is still to be fitted."""
        changes = {**network.recipe, "pattern": size.pattern, "d": size.d, "seed": seed}
        changes |= {**self.overrides.get(method, {}).get("recipe", {}), **size.recipe.get(method, {})}
        return dataclasses.replace(self.recipe, **changes)

    def only(
        self,
        *,
        networks: tuple[str, ...] = (),
        sizes: tuple[float, ...] = (),
        methods: tuple[str, ...] = (),
        seeds: tuple[int, ...] = (),
    ) -> Study:
        """A part of the study; empty selections keep everything.

        Raises:
            ConfigError: if something selected is not part of it. Seeds are free.
        """
        kept = _chosen(self, "method", methods, {m: m for m in self.methods})
        chosen = _chosen(self, "size", sizes, {s.ratio: s for s in self.sizes})
        parts = [
            {
                "without": tuple(m for m in s.without if m in kept),
                "recipe": {m: s.recipe[m] for m in s.recipe if m in kept},
            }
            for s in chosen
        ]
        return dataclasses.replace(
            self,
            networks=_chosen(self, "network", networks, {n.name: n for n in self.networks}),
            sizes=tuple(dataclasses.replace(s, **part) for s, part in zip(chosen, parts, strict=True)),
            methods=kept,
            seeds=seeds or self.seeds,
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> Study:
        """Read a study file.

        Raises:
            ConfigError: if it cannot be read, has unknown keys or lacks some, or is not valid.
        """
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"study {str(path)!r} cannot be read: {error}") from error
        return cls.from_dict({"name": path.stem, **data})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Study:
        """Build from plain tables, as a TOML file has them.

        Raises:
            ConfigError: on unknown or missing keys or invalid values.
        """
        values = dict(data)
        where = f"study {values.get('name')!r}"
        values["networks"] = tuple(
            _make(Network, {"name": name, **table}, f"{where}, network {name!r}")
            for name, table in values.get("networks", {}).items()
        )
        values["sizes"] = tuple(
            _make(Size, {**table, "without": tuple(table.get("without", ()))}, f"{where}, size {i}")
            for i, table in enumerate(values.get("sizes", ()))
        )
        values["recipe"] = as_recipe(values.get("recipe", {}))
        for key, kind in (("budget", Budget), ("output", Output)):
            values[key] = _make(kind, values.get(key, {}), f"{where}, {key}")
        for key in ("methods", "seeds"):
            if key in values:
                values[key] = tuple(values[key])
        return _make(cls, values, where)


def _make(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    fields: Any = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    known = [f.name for f in fields]
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    unknown, missing = [k for k in table if k not in known], [k for k in required if k not in table]
    if unknown or missing:
        raise ConfigError(f"{where}: unknown keys {unknown}, missing keys {missing}; known are {', '.join(known)}")
    return kind(**table)


def _chosen(study: Study, what: str, wanted: tuple[Any, ...], present: Mapping[Any, Any]) -> tuple[Any, ...]:
    absent = [item for item in wanted if item not in present]
    if absent:
        raise ConfigError(
            f"study {study.name!r} has no {what} {', '.join(map(str, absent))}; it has {', '.join(map(str, present))}"
        )
    return tuple(value for key, value in present.items() if key in wanted or not wanted)


def _option_faults(study: Study) -> list[str]:
    faults = [] if study.task in TASKS else [f"task={study.task!r} is not one of {', '.join(TASKS)}"]
    if study.task != "classification" and study.distillation is None:
        faults.append(f"task {study.task} is trained on the dense network's outputs; give a distillation table")
    for name in ("loss", "score"):
        if getattr(study, name) is not None and study.task == "classification":
            faults.append(f"{name} is for other tasks than classification; leave it out")
    tables = [("sparse", SPARSE_KEYS, study.sparse), ("finetune", FINETUNE_KEYS, study.finetune)]
    tables.append(("distillation", ("temperature", "weight"), study.distillation or {}))
    tables.append(("recover", tuple(f.name for f in dataclasses.fields(RecoverConfig)), study.recover or {}))
    for method, phases in study.overrides.items():
        tables.append((f"overrides.{method}", tuple(_OVERRIDE_KEYS), phases))
        tables += [
            (f"overrides.{method}.{p}", _OVERRIDE_KEYS[p], t) for p, t in phases.items() if _OVERRIDE_KEYS.get(p)
        ]
    try:
        RecoverConfig(**(study.recover or {}))
    except ConfigError as error:
        faults += str(error).splitlines()
    except TypeError:
        pass  # Unknown keys are named below.
    for where, known, table in tables:
        unknown = [key for key in table if key not in known]
        if unknown:
            faults.append(f"{where}: unknown keys {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    return faults


def _size_faults(study: Study) -> list[str]:
    faults = []
    for name in ("networks", "sizes", "methods", "seeds", "evaluate"):
        if not getattr(study, name):
            faults.append(f"{name} is empty; give at least one")
    for size in study.sizes:
        if not (math.isfinite(size.ratio) and size.ratio > 1):
            faults.append(f"size: ratio={size.ratio!r} is not above 1")
        for key in ("without", "recipe"):
            if unknown := [name for name in getattr(size, key) if name not in study.methods]:
                faults.append(f"size {size.ratio:g}: {key}={unknown} are not among the methods")
        try:
            if size.d % Pattern.parse(size.pattern).group:
                faults.append(f"size {size.ratio:g}: d={size.d} is not a multiple of M of pattern {size.pattern}")
        except ConfigError as error:
            faults.append(f"size {size.ratio:g}: {error}")
    budget = study.budget
    if budget.n_steps < 1 or budget.batch_size < 1 or budget.calibration_images < 1:
        faults.append("budget: n_steps, batch_size and calibration_images must be at least 1")
    elif not 0 <= budget.sparse_share < 1 or budget.steps(sparse=True)[1] < 1:
        faults.append(f"budget: sparse_share={budget.sparse_share} leaves no step of {budget.n_steps} to fine-tune")
    return faults
