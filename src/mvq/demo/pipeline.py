"""Train, prune, compress in several ways, fine-tune, save, reload, measure."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvq import api, flops
from mvq.compressed import CompressedModel, VQLayer
from mvq.demo.digits import digits
from mvq.demo.network import network
from mvq.errors import ConfigError
from mvq.nn import bake_, cluster_, eligible_layers, extract, prune_
from mvq.patterns import Pattern
from mvq.recipe import Recipe
from mvq.sizes import Size, sizes
from mvq.tasks import evaluate
from mvq.train import finetune

DENSE_EPOCHS, SPARSE_EPOCHS, TUNE_EPOCHS = 12, 4, 3
_DENSE_LR, _LR = 3e-3, 2e-3


@dataclass(frozen=True)
class Case:
    """One way to compress.

    Attributes:
        name: also of the file.
        title: for people.
        recipe: with one codebook for the network, as a net this small cannot pay for one a layer.
    """

    name: str
    title: str
    recipe: Recipe


def _case(name: str, title: str, **settings: Any) -> Case:
    return Case(name, title, Recipe(scope="network", **settings))


#: The `vq` ones are conventional: of dense weights (equal in bits to `mvq-4of16` and `mvq-2of16-packed`), and of pruned
#: weights with common k-means, which fits the pruned zeros too.
CASES: tuple[Case, ...] = (
    _case("vq-dense", "VQ dense", pattern="1:1", d=8, n_codewords=1024, kmeans="plain"),
    _case("vq-dense-small", "VQ dense, small", pattern="1:1", d=8, n_codewords=128, kmeans="plain"),
    _case("vq-4of16", "VQ of pruned 4:16", pattern="4:16", n_codewords=512, kmeans="plain"),
    _case("mvq-1of2", "MVQ 1:2", pattern="1:2", d=8, n_codewords=512),
    _case("mvq-4of16", "MVQ 4:16", pattern="4:16", n_codewords=512),
    _case("mvq-4of16-packed", "MVQ 4:16 packed", pattern="4:16", n_codewords=1024, codewords="packed"),
    _case("mvq-2of16-packed", "MVQ 2:16 packed", pattern="2:16", n_codewords=128, codewords="packed"),
)


@dataclass(frozen=True)
class LayerResult:
    """One vector-quantized layer.

    Attributes:
        name: of the layer.
        n_weights: of the layer.
        relative_sse: squared error of the kept weights over their energy, before fine-tuning.
        bits_assign: bits of the assignments.
        bits_mask: bits of the mask ids.
    """

    name: str
    n_weights: int
    relative_sse: float
    bits_assign: int
    bits_mask: int


@dataclass(frozen=True)
class CaseResult:
    """What one case came to; accuracies are top-1 in percent.

    Attributes:
        name: of the case.
        title: of the case.
        pattern: N:M.
        d: lanes of a subvector.
        codewords: `masked` or `packed`.
        kmeans: `masked` or `plain`.
        n_codewords: of the codebook.
        pruned: accuracy after pruning and sparse training, before clustering.
        before: accuracy after clustering.
        after: accuracy after fine-tuning.
        file: name of the `.mvq` file.
        sizes: by convention.
        bits_per_weight: assignments, masks and codebook over the vector-quantized weights.
        relative_sse: squared error of the kept weights over their energy, before fine-tuning.
        flops_executed: multiply-accumulates of one image that are not pruned.
        layers: the vector-quantized ones.
        bits_codebook: bits of the codebook.
        usage: subvectors of each codeword, most used first.
    """

    name: str
    title: str
    pattern: str
    d: int
    codewords: str
    kmeans: str
    n_codewords: int
    pruned: float
    before: float
    after: float
    file: str
    sizes: Mapping[str, Size]
    bits_per_weight: float
    relative_sse: float
    flops_executed: int
    layers: tuple[LayerResult, ...]
    bits_codebook: int
    usage: tuple[int, ...]


@dataclass(frozen=True)
class DemoReport:
    """The whole demo.

    Attributes:
        dense: top-1 of the uncompressed network in percent.
        standard_error: of that accuracy, in percentage points.
        n_test: test images.
        n_weights: weights of convolutions and linear layers.
        dense_bytes: all state uncompressed.
        flops_dense: multiply-accumulates of one image.
        cases: in order.
        best: name of the case with the highest accuracy; the smallest file among equals.
        reloaded: its accuracy, loaded from its file into a new network.
        seconds: the whole demo took.
        seed: of all random choices.
    """

    dense: float
    standard_error: float
    n_test: int
    n_weights: int
    dense_bytes: int
    flops_dense: int
    cases: tuple[CaseResult, ...]
    best: str
    reloaded: float
    seconds: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; sizes as `{convention: {bytes, ratio}}`."""
        out = asdict(self)
        for row, case in zip(out["cases"], self.cases, strict=True):
            row["sizes"] = {k: {"bytes": s.bytes, "ratio": s.ratio} for k, s in case.sizes.items()}
            row["layers"], row["usage"] = list(row["layers"]), list(row["usage"])
        out["cases"] = list(out["cases"])
        return out


def run(
    folder: str | Path,
    *,
    seed: int = 0,
    epochs: int = DENSE_EPOCHS,
    cases: Sequence[Case] = CASES,
    on_step: Callable[[str], None] | None = None,
    progress: bool = False,
) -> DemoReport:
    """Run the demo.

    Args:
        folder: receives one `.mvq` file a case; made if missing.
        seed: of all random choices.
        epochs: of dense training; sparse training and fine-tuning take at most a third and a quarter as many.
        cases: which ones.
        on_step: told what comes next.
        progress: show bars.

    Returns:
        All that was measured.

    Raises:
        ConfigError: if `epochs` is below 1 or there is no case.
    """
    if epochs < 1 or not cases:
        raise ConfigError(f"demo: epochs={epochs} with {len(cases)} cases; both must be at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    # The layers are so small that a second thread waits more than it works.
    torch.set_num_threads(1)
    # Once the loss is nearly zero, Adam's averages become denormal, which CPUs compute with ten times slower.
    torch.set_flush_denormal(True)
    try:
        return _Demo(folder, seed, epochs, on_step or (lambda _: None), progress).run(cases)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


class _Demo:
    def __init__(self, folder: Path, seed: int, epochs: int, say: Callable[[str], None], progress: bool) -> None:
        self.folder, self.seed, self.epochs, self.say, self.progress = folder, seed, epochs, say, progress
        self.test = digits("val", 257)
        self.sparse: dict[Pattern, tuple[nn.Module, float]] = {}

    def run(self, cases: Sequence[Case]) -> DemoReport:
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = network()
        self.say("training the dense network")
        self._train(model, self.epochs, _DENSE_LR)
        dense = evaluate(model, self.test)
        results = tuple(self._case(model, case) for case in cases)
        best = max(results, key=lambda r: (r.after, -r.sizes["on_disk"].bits))
        self.say(f"loading {best.file} into a new network")
        reloaded = evaluate(api.load_into(network(), self.folder / best.file, dense=True), self.test)
        return DemoReport(
            dense=dense.value,
            standard_error=dense.standard_error,
            n_test=dense.n,
            n_weights=sum(m.weight.numel() for _, m, _ in eligible_layers(model)),  # type: ignore[operator,union-attr]
            dense_bytes=results[0].sizes["whole_model"].dense_bits // 8,
            flops_dense=flops.count(model, self.test.images[:1]).dense,
            cases=results,
            best=best.name,
            reloaded=reloaded.value,
            seconds=time.perf_counter() - start,
            seed=self.seed,
        )

    def _train(self, model: nn.Module, epochs: int, lr: float) -> None:
        data = digits("train", 64, seed=self.seed)
        finetune(model, data, epochs=max(1, epochs), lr=lr, progress=self.progress)

    def _sparse(self, model: nn.Module, recipe: Recipe) -> tuple[nn.Module, float]:
        """The network trained with the pattern's masks, shared by the cases of that pattern; dense as it is."""
        pattern = Pattern.parse(recipe.pattern)
        if pattern not in self.sparse:
            sparse = copy.deepcopy(model)
            if not pattern.is_dense:
                self.say(f"training with {pattern} masks")
                prune_(sparse, recipe)
                self._train(sparse, min(SPARSE_EPOCHS, -(-self.epochs // 3)), _LR)
                bake_(sparse)
            self.sparse[pattern] = sparse, evaluate(sparse, self.test).value
        return self.sparse[pattern]

    def _case(self, dense: nn.Module, case: Case) -> CaseResult:
        recipe = case.recipe
        sparse, pruned = self._sparse(dense, recipe)
        energy = {name: _energy(module) for name, module, _ in eligible_layers(sparse)}
        self.say(f"compressing: {case.title}")
        model = cluster_(copy.deepcopy(sparse), recipe, progress=self.progress)
        before = evaluate(model, self.test).value
        errors = {layer.name: layer.masked_sse for layer in extract(model).vq_layers}
        self._train(model, min(TUNE_EPOCHS, -(-self.epochs // 4)), _LR)
        after = evaluate(model, self.test)
        file = f"{case.name}.mvq"
        provenance = {"model": "mvq.demo:network", "task": "classification", "data": "mvq.demo:digits"}
        n_bytes = api.save(model, self.folder / file, provenance=provenance | {"result": after.to_dict()})
        compressed = extract(model)
        layers = tuple(
            LayerResult(
                layer.name,
                layer.n_weights,
                errors[layer.name] / energy[layer.name],
                layer.bits_assign,
                layer.bits_mask,
            )
            for layer in compressed.vq_layers
        )
        bits_codebook = sum(8 * book.codes.size for book in compressed.codebooks.values())
        bits = bits_codebook + sum(layer.bits_assign + layer.bits_mask for layer in layers)
        return CaseResult(
            name=case.name,
            title=case.title,
            pattern=str(recipe.pattern),
            d=recipe.d,
            codewords=recipe.codewords,
            kmeans=recipe.kmeans,
            n_codewords=recipe.n_codewords,
            pruned=pruned,
            before=before,
            after=after.value,
            file=file,
            sizes=sizes(compressed, n_bytes),
            bits_per_weight=bits / sum(layer.n_weights for layer in layers),
            relative_sse=sum(errors.values()) / sum(energy[name] for name in errors),
            flops_executed=flops.count(model, self.test.images[:1]).executed,
            layers=layers,
            bits_codebook=bits_codebook,
            usage=_usage(compressed),
        )


def _energy(module: nn.Module) -> float:
    return float((module.weight.detach().double() ** 2).sum())  # type: ignore[operator,union-attr]


def _usage(compressed: CompressedModel) -> tuple[int, ...]:
    counts = [np.zeros(book.n_codewords, np.int64) for book in compressed.codebooks.values()]
    by_key = dict(zip(compressed.codebooks, counts, strict=True))
    for layer in compressed.layers:
        if isinstance(layer, VQLayer):
            by_key[layer.codebook] += np.bincount(layer.assignments, minlength=layer.n_codewords)
    return tuple(sorted(np.concatenate(counts).tolist(), reverse=True))
