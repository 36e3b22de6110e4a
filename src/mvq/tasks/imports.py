"""Objects named `package.module:attribute`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvq.errors import MvqError

_SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_spec(spec: str) -> bool:
    """Whether the text has the form `package.module:attribute`."""
    return _SPEC.fullmatch(spec) is not None


def import_callable(spec: str, error: type[MvqError]) -> Callable[..., Any]:
    """The callable that `package.module:attribute` names; modules of the current folder are found, too.

    Args:
        spec: for which `is_import_spec` holds.
        error: class to raise.

    Raises:
        MvqError: of the given class, if the module or the attribute does not exist or cannot be called. An
            import error inside the module is passed on as it is.
    """
    module_name, attribute = spec.split(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        # A module that the named one imports is the module's own fault, not a wrong spec.
        if not (module_name + ".").startswith(f"{missing.name}."):
            raise
        raise error(
            f"{spec!r}: there is no module {missing.name!r}; it must be installed or lie in the current folder"
        ) from None
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise error(f"{spec!r}: module {module_name!r} has no {attribute!r}")
        value = getattr(value, part)
    if not callable(value):
        raise error(f"{spec!r} is a {type(value).__name__}; name a function or class to call")
    return value
