"""N:M patterns: which lanes are kept, and the number (mask id) that says so.

A mask id is the lexicographic rank of the kept positions among all `C(M, N)` subsets of `{0, ..., M-1}`:
subsets are compared as ascending tuples, so id 0 keeps lanes `0 .. N-1`. Ranking is the combinatorial number
system (Knuth, TAOCP 7.2.1.3), done here with M vectorised steps for any number of masks.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvq.errors import ConfigError, ShapeError, StreamError

MAX_GROUP = 32
_SORT_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class Pattern:
    """Keep `keep` of every `group` consecutive lanes; written `keep:group`, e.g. `4:16`.

    A pattern that keeps every lane (`1:1`, `16:16`) is dense: it has one mask and costs no mask bits.

    Raises:
        ConfigError: unless `1 <= keep <= group <= 32`.
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not (1 <= self.keep <= self.group):
            raise ConfigError(
                f"pattern {self.keep}:{self.group}: N:M keeps N of every M weights, so N must lie in 1..M; "
                f"write the smaller number first, as in 4:16"
            )
        if self.group > MAX_GROUP:
            raise ConfigError(
                f"pattern {self.keep}:{self.group}: M={self.group} is above the limit of {MAX_GROUP}; "
                f"use a smaller M with the same ratio"
            )

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """Read `"N:M"`; a `Pattern` is returned as it is."""
        if isinstance(text, Pattern):
            return text
        match = re.fullmatch(r"\s*(\d{1,4})\s*:\s*(\d{1,4})\s*", text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(f"pattern {text!r}: expected N:M with whole numbers, as in '4:16'")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.keep}:{self.group}"

    @property
    def is_dense(self) -> bool:
        """Whether every lane is kept."""
        return self.keep == self.group

    @property
    def density(self) -> float:
        """Share of weights kept, `N / M`."""
        return self.keep / self.group

    @property
    def n_masks(self) -> int:
        """Number of distinct masks, `C(M, N)`."""
        return math.comb(self.group, self.keep)

    @property
    def mask_bits(self) -> int:
        """Bits of one mask id, `ceil(log2 C(M, N))`."""
        return (self.n_masks - 1).bit_length()

    def kept_per(self, d: int) -> int:
        """Kept lanes `Q = N / M * d` of a subvector of `d` lanes."""
        return d // self.group * self.keep

    def top_mask(self, scores: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Keep the `keep` largest scores of every `group` consecutive lanes; ties keep the lowest lane.

        Args:
            scores: `(..., d)` with `d` a multiple of `group`; usually magnitudes.

        Returns:
            Boolean mask of the same shape, True = kept.
        """
        blocks = _blocks(scores, self.group).reshape(-1, self.group)
        mask = np.zeros(blocks.shape, dtype=bool)
        # By parts: the indices of a sort take many times the memory of the mask
        for low in range(0, len(blocks), _SORT_ROWS):
            part = slice(low, low + _SORT_ROWS)
            order = np.argsort(-blocks[part], axis=-1, kind="stable")[:, : self.keep]
            np.put_along_axis(mask[part], order, True, axis=-1)
        return mask.reshape(scores.shape)

    def rank(self, mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """Mask ids of `(..., d)` masks, shape `(..., d / group)`.

        Raises:
            ShapeError: if a block of `group` lanes does not keep exactly `keep`.
        """
        blocks = _blocks(np.asarray(mask, dtype=bool), self.group)
        counts = blocks.sum(axis=-1)
        if blocks.size and not (counts == self.keep).all():
            bad = int(counts[counts != self.keep].flat[0])
            raise ShapeError(f"pattern {self}: a block of {self.group} lanes keeps {bad}, must keep {self.keep}")
        binomials = _binomials(self.group, self.keep)
        remaining = np.full(blocks.shape[:-1], self.keep, dtype=np.int64)
        rank = np.zeros(blocks.shape[:-1], dtype=np.int64)
        for lane in range(self.group):
            kept = blocks[..., lane]
            # A lane passed over skips every subset that would have kept it next.
            rank += np.where(kept, 0, binomials[self.group - 1 - lane, remaining])
            remaining -= kept
        return rank.astype(np.uint32)

    def unrank(self, mask_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Masks `(..., n_blocks * group)` of mask ids `(..., n_blocks)`; inverse of `rank`.

        Raises:
            StreamError: if an id is not below `C(M, N)`.
        """
        ids = np.asarray(mask_ids)
        if ids.size and (int(ids.max()) >= self.n_masks or int(ids.min()) < 0):
            bad = int(ids.max()) if int(ids.max()) >= self.n_masks else int(ids.min())
            raise StreamError(f"pattern {self}: mask id {bad} is not in 0..{self.n_masks - 1}")
        if self.n_masks <= 1 << 16:
            blocks = _all_masks(self.keep, self.group)[ids]
        else:
            blocks = _unrank(ids, self.keep, self.group)
        return blocks.reshape(*ids.shape[:-1], ids.shape[-1] * self.group)


def _blocks(array: NDArray, group: int) -> NDArray:
    if array.ndim < 1 or array.shape[-1] % group:
        raise ShapeError(f"{array.shape[-1] if array.ndim else 0} lanes do not split into blocks of {group}")
    return array.reshape(*array.shape[:-1], array.shape[-1] // group, group)


@functools.cache
def _binomials(group: int, keep: int) -> NDArray[np.int64]:
    """Entry `[n, r]` is `C(n, r - 1)`, subsets of `n` later lanes once one of `r` is taken; 0 if `r = 0`."""
    rows = [[math.comb(n, r - 1) if r else 0 for r in range(keep + 1)] for n in range(group)]
    return np.array(rows, dtype=np.int64).reshape(group, keep + 1)


@functools.cache
def _all_masks(keep: int, group: int) -> NDArray[np.bool_]:
    table = _unrank(np.arange(math.comb(group, keep)), keep, group)
    table.setflags(write=False)
    return table


def _unrank(ids: NDArray[np.integer], keep: int, group: int) -> NDArray[np.bool_]:
    binomials = _binomials(group, keep)
    rest = ids.astype(np.int64)
    remaining = np.full(ids.shape, keep, dtype=np.int64)
    blocks = np.empty((*ids.shape, group), dtype=bool)
    for lane in range(group):
        skipped = binomials[group - 1 - lane, remaining]
        kept = rest < skipped
        blocks[..., lane] = kept
        rest -= np.where(kept, 0, skipped)
        remaining -= kept
    return blocks
