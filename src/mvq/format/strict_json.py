"""JSON as the format uses it: one canonical form to write, and a reader that accepts nothing ambiguous."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any, NoReturn

from mvq.errors import HeaderError
from mvq.format.layout import MAX_NESTING, MAX_VALUES

_MAX_DIGITS = 19
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: Any) -> str:
    """A value for an error text, cut to a readable length."""
    return _SHORT.repr(value)


def canonical(value: Any) -> str:
    """Sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def loads(text: str, what: str) -> Any:
    """Parse JSON without duplicate keys, NaN, infinity or numbers beyond 64 bits.

    Args:
        text: the JSON text.
        what: names it in errors.

    Raises:
        HeaderError: if it is not valid, has more than `MAX_VALUES` values or is nested too deeply.
    """
    # Each value but the first follows one of these; counted before any of them is made.
    n_values = text.count(",") + text.count("[") + text.count("{")
    if n_values > MAX_VALUES:
        raise HeaderError(f"{what}: more than {MAX_VALUES} values")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise HeaderError(f"{what}: key {short(twice)} is given twice")
        return out

    def constant(name: str) -> NoReturn:
        raise HeaderError(f"{what}: {name} is not a JSON number")

    def integer(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise HeaderError(f"{what}: number {short(digits)} has more than {_MAX_DIGITS} digits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise HeaderError(f"{what}: number {short(digits)} is out of range")
        return value

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer, parse_float=real)
    except json.JSONDecodeError as error:
        raise HeaderError(f"{what}: not valid JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise HeaderError(f"{what}: nested too deeply") from None


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of a JSON value in plain types, tuples as lists.

    Raises:
        HeaderError: if it is nested deeper than `MAX_NESTING` or holds what JSON cannot.
    """
    if depth > MAX_NESTING:
        raise HeaderError(f"provenance: nested more than {MAX_NESTING} deep")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise HeaderError(f"{where}: key {short(key)} is not a string")
        return {key: plain(item, f"{where}[{short(key)}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int) and abs(value) < 10 ** (_MAX_DIGITS - 1):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise HeaderError(
        f"{where}: {short(value)} is not a JSON value; use strings, finite numbers of up to 18 digits, "
        f"booleans, None, lists and dictionaries"
    )
