"""Who may import whom. An idea has one home, and the homes do not know one another."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import mvq

SRC = Path(mvq.__file__).parent
OUTSIDE_ENGINE = {"mvq.train", "mvq.nn", "mvq.tasks", "mvq.cli", "mvq.api"}

#: Part -> parts of mvq it must not reach, directly or through others.
FORBIDDEN = {
    "mvq.patterns": {"mvq.recipe", "mvq.grouping", "mvq.compressed"} | OUTSIDE_ENGINE,
    "mvq.grouping": {"mvq.recipe", "mvq.compressed"} | OUTSIDE_ENGINE,
    "mvq.recipe": {"mvq.grouping", "mvq.compressed", "mvq.cluster"} | OUTSIDE_ENGINE,
    "mvq.cluster": OUTSIDE_ENGINE | {"mvq.format", "mvq.compressed"},
    "mvq.codebook": OUTSIDE_ENGINE | {"mvq.format"},
    "mvq.prune": OUTSIDE_ENGINE | {"mvq.format"},
    "mvq.compressed": OUTSIDE_ENGINE | {"mvq.cluster"},
    "mvq.format": OUTSIDE_ENGINE | {"mvq.cluster"},
    "mvq.sizes": OUTSIDE_ENGINE | {"mvq.cluster"},
    "mvq.nn": {"mvq.train", "mvq.tasks", "mvq.cli", "mvq.api", "mvq.format"},
    "mvq.tasks": {"mvq.cli", "mvq.train", "mvq.nn", "mvq.cluster"},
    "mvq.accel": {"mvq.cluster", "mvq.codebook", "mvq.prune"} | OUTSIDE_ENGINE - {"mvq.cli"},
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def _modules() -> dict[str, ast.Module]:
    return {_module_name(p): ast.parse(p.read_text(), str(p)) for p in sorted(SRC.rglob("*.py"))}


def _targets(node: ast.AST, importer: str) -> list[str]:
    """Full names an import statement can reach; `from a import b` is `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        is_package = (SRC.parent / importer.replace(".", "/") / "__init__.py").exists()
        package = importer.split(".")[: len(importer.split(".")) - node.level + is_package]
        base = ".".join([*package, *([node.module] if node.module else [])])
    names = [f"{base}.{alias.name}" for alias in node.names]
    # The root's public names stand for the parts they live in.
    names = [mvq._HOMES.get(n.removeprefix("mvq."), n) if base == "mvq" else n for n in names]
    return names if base == "mvq" else [base, *names]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(name: str, tree: ast.AST, *, at_import: bool) -> list[str]:
    """What a module imports; with `at_import` only what runs when it is itself imported."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += _targets(node, name)
        elif _is_type_checking(node) or (
            at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        ):
            continue
        else:
            found += _imports(name, node, at_import=at_import)
    return found


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


@functools.cache
def _direct(name: str) -> frozenset[str]:
    tree = _modules()[name]
    return frozenset(t for t in _imports(name, tree, at_import=False) if t in _modules() and t != "mvq")


def _path_to(start: str, forbidden: set[str]) -> list[str] | None:
    """Chain of imports from a module to a forbidden part."""
    chains, seen = [[start]], {start}
    for chain in chains:
        for target in sorted(_direct(chain[-1]) - seen):
            seen.add(target)
            if any(_within(target, part) for part in forbidden):
                return [*chain, target]
            chains.append([*chain, target])
    return None


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_reach_only_what_they_may(part: str) -> None:
    members = [name for name in _modules() if _within(name, part)]
    if not members:
        pytest.skip(f"{part} is not part of this version")
    for name in members:
        assert _path_to(name, FORBIDDEN[part]) is None


def test_nothing_imports_the_command_line() -> None:
    for name in _modules():
        if not _within(name, "mvq.cli") and name != "mvq.__main__":
            assert not [t for t in _direct(name) if _within(t, "mvq.cli")], name


@pytest.mark.parametrize("part", ["mvq.cluster", "mvq.codebook", "mvq.prune", "mvq.format", "mvq.compressed"])
def test_arrays_only(part: str) -> None:
    """These know no torch module; torch itself only lazily, or in the engine made of it."""
    for name, tree in _modules().items():
        if not _within(name, part):
            continue
        assert not [t for t in _imports(name, tree, at_import=False) if _within(t, "torch.nn")], name
        eager = [t for t in _imports(name, tree, at_import=True) if _within(t, "torch")]
        assert not eager or name == "mvq.cluster.device", name


def test_no_part_prints_or_configures_logging() -> None:
    for name, tree in _modules().items():
        if not _within(name, "mvq.cli"):
            calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert not calls & {"print", "logging.basicConfig"}, name


def test_the_rules_see_imports() -> None:
    """The checks above are empty unless these hold."""
    assert "mvq.errors" in _direct("mvq.patterns")
    assert _path_to("mvq.sizes", {"mvq.patterns"}) == ["mvq.sizes", "mvq.compressed", "mvq.patterns"]
    tree = ast.parse("from mvq import cluster_\ndef f():\n    import torch.nn\n")
    assert _imports("mvq.x", tree, at_import=True) == ["mvq.nn"]
    assert "torch.nn" in _imports("mvq.x", tree, at_import=False)
    assert _imports("mvq.nn.x", ast.parse("from .layers import plan"), at_import=True)[0] == "mvq.nn.layers"
