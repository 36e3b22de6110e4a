from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import mvq


def test_version_is_that_of_the_distribution() -> None:
    assert mvq.__version__ == importlib.metadata.version("mvq")


@pytest.mark.parametrize("name", mvq.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mvq, name) is not None


def test_names_are_those_of_their_homes() -> None:
    from mvq.recipe import Recipe

    assert mvq.Recipe is Recipe
    assert set(dir(mvq)) == set(mvq.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = mvq.quantise  # type: ignore[attr-defined]
    assert str(caught.value) == "module 'mvq' has no attribute 'quantise'"


def _loaded(statement: str, *names: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint([n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return eval(done.stdout)


HEAVY = ("torch", "torchvision", "numba", "sklearn", "matplotlib", "jinja2", "rich", "typer")


def test_import_is_light() -> None:
    assert _loaded("import mvq", *HEAVY) == []


def test_recipes_and_compressed_data_need_no_torch() -> None:
    assert _loaded("import mvq; mvq.Recipe(); mvq.compressed; mvq.sizes", "torch", "numba") == []


def test_reading_files_needs_no_torch() -> None:
    assert _loaded("import mvq.format", "torch", "torchvision") == []


def test_cluster_loads_torch_only_where_a_device_is_asked_for() -> None:
    assert _loaded("import mvq.cluster", "torch") == []
