"""Measuring the rows of a study: each once, in worker processes, so that an interrupted run goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import mvq
from mvq import flops
from mvq.allocate import achieved_bits
from mvq.baselines.forms import compressed_bits
from mvq.bench.measuring import agreement, dense_measured, errors, measure, model_bits, plain_weights, settings
from mvq.bench.methods import Method, Point, find
from mvq.bench.rows import Row, Rows
from mvq.bench.study import Network, Size, Study
from mvq.bench.training import (
    build,
    calibration,
    digest,
    finetune_phase,
    frozen_copy,
    loader,
    meaning,
    quiet_random,
    sparse_key,
    sparse_network,
    state_digest,
)
from mvq.errors import MvqError
from mvq.progress import track
from mvq.recipe import Recipe

Correct = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Job:
    """One row to be measured.

    Attributes:
        study: it is of.
        network: to compress.
        size: to reach.
        method_name: as in the study.
        seed: of training and method.
        dense_digest: hash of the dense network's state.
        device: where to train.
    """

    study: Study
    network: Network
    size: Size
    method_name: str
    seed: int
    dense_digest: str
    device: str

    @property
    def method(self) -> Method:
        """Looked up in each process, as functions do not travel."""
        return find(self.method_name)

    @property
    def recipe(self) -> Recipe:
        """That the method starts from."""
        return self.study.recipe_for(self.network, self.size, self.method_name, self.seed)

    @property
    def key(self) -> str:
        """Hash of everything that decides the row."""
        name, study = self.method_name, self.study
        options = [study.options(name, phase) for phase in ("sparse", "finetune")]
        place = [self.network.name, self.dense_digest, self.size.ratio, name, self.method.settings, self.seed]
        return digest(study.setup, place, self.recipe.to_dict(), options, self.device)

    @property
    def work(self) -> Path:
        """Folder of what can be made again."""
        return Path(self.study.output.work)

    def point(self, model: nn.Module) -> Point:
        """What the method is asked for, without calibration data."""
        target_bits = int(32 * achieved_bits(model, self.recipe).n_weights / self.size.ratio)
        score, _ = meaning(self.study)
        return Point(recipe=self.recipe, target_bits=target_bits, seed=self.seed, score=score)

    def facts(self) -> dict[str, Any]:
        """Columns known before measuring."""
        return {
            "key": self.key,
            "setup": self.study.setup,
            "network": self.network.name,
            "method": self.method.name,
            "size_ratio": float(self.size.ratio),
            "seed": self.seed,
            "device": self.device,
            "hardware": hardware(self.device),
            "mvq": mvq.__version__,
            "torch": torch.__version__,
        }


def hardware(device: str) -> str:
    """What the times of a row belong to: a GPU's name, or the vector instructions of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() + (" with AMX" if torch.cpu._is_amx_tile_supported() else "")


def run(
    study: Study,
    *,
    n_jobs: int = 1,
    device: str = "cpu",
    force: bool = False,
    progress: bool = False,
    on_row: Callable[[Row, int, int], None] | None = None,
) -> list[Row]:
    """Measure the rows of a study that are not in its table yet.

    Args:
        study: what to measure.
        n_jobs: worker processes; each gets an equal share of the cores as threads.
        device: where to train.
        force: measure rows again that are there.
        progress: show a bar.
        on_row: told each new row, its number and how many there are to do.

    Returns:
        The rows of the study, in its order; failed ones have an `error`.

    Raises:
        MvqError: if a network or data set cannot be had, or a worker died. Finished rows are kept.
    """
    rows = Rows(Path(study.output.rows), list(study.evaluate))
    everything, models = _jobs(study, device)
    todo = [job for job in everything if force or not rows.done(job.key)]
    with _pool(n_jobs) as pool:
        results = _results(todo, models, pool, progress)
        for number, (row, correct) in enumerate(results, 1):
            rows.add(row, correct)
            if on_row is not None:
                on_row(rows.rows[row["key"]], number, len(todo))
    return [rows.rows[job.key] for job in everything]


def _results(
    jobs: Sequence[Job], models: dict[str, nn.Module], pool: ProcessPoolExecutor | None, progress: bool
) -> Iterator[tuple[dict[str, Any], Correct]]:
    """Sparse-trained networks first, each once, then the rows as they get ready."""
    first, sparse_of = _sparse_jobs(jobs, models)
    sparse = _each(_sparse_task, first, pool)
    told = track(sparse, "sparse training", total=len(first), enabled=progress)
    failed = {sparse_of[job.key]: error for job, error in told if error}
    ready = [job for job in jobs if sparse_of.get(job.key) not in failed]
    for job in jobs:
        if sparse_of.get(job.key) in failed:
            yield {**job.facts(), "error": failed[sparse_of[job.key]]}, {}
    rows = _each(_row_task, ready, pool)
    yield from (result for _, result in track(rows, "rows", total=len(ready), enabled=progress))


def _jobs(study: Study, device: str) -> tuple[list[Job], dict[str, nn.Module]]:
    """Every row's job, and the dense networks by name, measured."""
    jobs, models = [], {}
    for network in study.networks:
        model = models[network.name] = build(network, Path(study.output.work))
        found = state_digest(model)
        dense_measured(study, model.to(device), found, Path(study.output.work))
        model.to("cpu")
        jobs += [
            Job(study, network, size, method, seed, found, device)
            for size in study.sizes
            for method in study.methods
            if method not in size.without
            for seed in study.seeds
        ]
    return jobs, models


def _sparse_jobs(jobs: Sequence[Job], models: dict[str, nn.Module]) -> tuple[list[Job], dict[str, str]]:
    """One job for each sparse-trained network, and the network's key for the jobs that need one."""
    first: dict[str, Job] = {}
    keys = {}
    for job in jobs:
        model = models[job.network.name]
        try:
            recipe = job.method.masks(model, job.point(model))
        except MvqError:
            continue  # the row itself will tell
        if recipe is not None:
            keys[job.key] = sparse_key(job.study, job.method, recipe, job.dense_digest, job.seed)
            first.setdefault(keys[job.key], job)
    return list(first.values()), keys


@contextlib.contextmanager
def _pool(n_jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that share the cores; None for one job, which runs here."""
    if n_jobs == 1:
        yield None
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Fresh processes: torch's thread pools do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_jobs, context, _start_worker, (max(1, cores // n_jobs),))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise MvqError(
            "a worker process died, for want of memory perhaps; finished rows are kept, run again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _each(
    task: Callable[[Job], Any], jobs: Sequence[Job], pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Job, Any]]:
    """`(job, task(job))` as they get ready."""
    if pool is None:
        for job in jobs:
            yield job, task(job)
        return
    futures = {pool.submit(task, job): job for job in jobs}
    for future in as_completed(futures):
        yield futures[future], future.result()


def _start_worker(n_threads: int) -> None:
    import numba

    torch.set_num_threads(n_threads)
    # Not more than numba was started with.
    numba.set_num_threads(min(n_threads, numba.get_num_threads()))


def _sparse_task(job: Job) -> str:
    """Train a sparse network and keep it in its file; the error's text, empty without one."""
    try:
        with quiet_random(job.seed):
            model = build(job.network, job.work).to(job.device)
            _prepare(job, job.method, model, job.point(model))
    except Exception as error:  # one network's failure must not end the others
        return _tell(error)
    return ""


def _row_task(job: Job) -> tuple[dict[str, Any], Correct]:
    try:
        with quiet_random(job.seed):
            return _measure_row(job)
    except Exception as error:  # recorded in the row; the rest goes on
        return {**job.facts(), "error": _tell(error)}, {}


def _tell(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, MvqError) and text else f"{type(error).__name__}: {text}"


def _prepare(job: Job, method: Method, model: nn.Module, point: Point) -> float:
    """Train with masks where the method does; the seconds of that training."""
    recipe = method.masks(model, point)
    if recipe is None:
        return 0.0
    key = sparse_key(job.study, method, recipe, job.dense_digest, job.seed)
    return sparse_network(job.study, method, point, recipe, model, job.work / f"sparse-{key}.safetensors")[1]


def _measure_row(job: Job) -> tuple[dict[str, Any], Correct]:
    study, method = job.study, job.method
    dense = build(job.network, job.work).to(job.device)
    reference = dense_measured(study, dense, job.dense_digest, job.work)
    model = frozen_copy(dense).requires_grad_(True)
    point = replace(job.point(model), calibration=calibration(study))
    sparse_seconds = _prepare(job, method, model, point)
    start = time.perf_counter()
    weights = plain_weights(model)
    model = method.compress(model, point)
    total, important = errors(model, point.recipe, weights) if method.clusters else (None, None)
    before = measure(study, model)
    n_steps = finetune_phase(study, method, point, model, frozen_copy(dense))
    after = measure(study, model)
    row = {**job.facts(), **_sizes(study, job, model, point)}
    row |= {"metric": next(iter(after.values())).metric, "total_sse": total, "important_sse": important}
    row |= {"sparse_steps": study.budget.n_steps - n_steps, "finetune_steps": n_steps}
    row |= {"sparse_seconds": sparse_seconds, "seconds": time.perf_counter() - start}
    for name, result in after.items():
        found = (result.n, reference[name].value, before[name].value, result.value, agreement(result, reference[name]))
        names = ("n", "dense_percent", "before_percent", "percent", "agreement_percent")
        row |= {f"{name}_{what}": value for what, value in zip(names, found, strict=True)}
    return row, {name: result.correct for name, result in after.items() if result.correct is not None}


def _sizes(study: Study, job: Job, model: nn.Module, point: Point) -> dict[str, Any]:
    batch = next(iter(loader(next(iter(study.evaluate.values())), "val", study.budget.batch_size)))
    work = flops.count(model, batch[0][:1].to(job.device))
    n_weights = achieved_bits(model, point.recipe).n_weights
    bits = compressed_bits(model)
    return {
        **settings(model),
        "n_weights": n_weights,
        "target_bits": point.target_bits,
        "bits": bits,
        "bytes": -(-bits // 8),
        "ratio": 32 * n_weights / bits,
        "model_bytes": -(-model_bits(model) // 8),
        "macs_dense": work.dense,
        "macs_executed": work.executed,
    }
