"""Fixtures shared by all tests, and the settings of the property tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if (processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT")) is not None:
    # Test processes share the cores. PyTorch reads the variable when it is imported, as do processes that tests start.
    share = max(1, (os.cpu_count() or 1) // int(processes))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    numba.set_num_threads(min(share, numba.get_num_threads()))

settings.register_profile(
    "mvq", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("mvq")


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of random numbers of a test, the same on every run."""
    return np.random.default_rng(20250330)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads Numba, up to `numba.config.NUMBA_NUM_THREADS`, and PyTorch use until the test ends."""
    import torch

    def to(threads: int, of_torch: int | None = None) -> None:
        numba.set_num_threads(threads)
        torch.set_num_threads(of_torch or threads)

    before = numba.get_num_threads(), torch.get_num_threads()
    yield to
    to(*before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """`cpu` always; `cuda` where there is such a device."""
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(scope="session")
def rtl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where RTL is compiled; Verilator's own code once for all tests."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: apt install g++")
    return tmp_path_factory.mktemp("rtl")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real weights and images, named by the environment variable MVQ_DATA."""
    root = os.environ.get("MVQ_DATA")
    if not root:
        pytest.skip("MVQ_DATA is not set: no real data to test with")
    if not Path(root).is_dir():
        pytest.skip(f"MVQ_DATA={root}: no such folder")
    return Path(root)
