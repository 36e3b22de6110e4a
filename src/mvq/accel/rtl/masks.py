"""Mask decoding: from the number of a mask to the lanes that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.parts import Part
from mvq.accel.spec import MaskDecode
from mvq.patterns import Pattern


def table(m: Module, address: Value, words: Sequence[int], width: int, name: str) -> Signal:
    """A constant for each address; zero past the last."""
    found = Signal(width, name=name)
    with m.Switch(address):
        for i, word in enumerate(words):
            with m.Case(i):
                m.d.comb += found.eq(Const(word, width))
    return found


def mask_words(pattern: Pattern) -> list[int]:
    """Every mask as a number whose bit i is lane i."""
    masks = pattern.unrank(np.arange(pattern.n_masks)[:, None])
    return [sum(1 << int(lane) for lane in np.nonzero(row)[0]) for row in masks]


class MaskTable(Part):
    """The mask of an id, for tiles with a multiplier for every lane.

    Args:
        pattern: N:M.

    Ports:
        id: of the mask.
        mask: a bit for each lane.
    """

    module = "mvq_mask_table"

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        super().__init__({"id": In(pattern.mask_bits), "mask": Out(pattern.group)})

    def elaborate(self, platform: object) -> Module:
        """The table."""
        m = Module()
        m.d.comb += self.mask.eq(table(m, self.id, mask_words(self.pattern), self.pattern.group, "found"))
        return m


class MaskDecoder(Part):
    """Kept lanes of a mask, in order.

    Ids past the last mask have no meaning; what is found for them does no harm.

    Args:
        pattern: N:M.
        how: `lzc` looks the mask up and finds its bits by N leading-zero counters, each of which clears the bit it
            found; `position-lut` looks the lanes up.

    Ports:
        id: of the mask.
        lanes: N of them, each of ceil(log2 M) bits.
    """

    module = "mvq_mask_decoder"

    def __init__(self, pattern: Pattern, how: MaskDecode) -> None:
        self.pattern, self.how = pattern, how
        self.lane_bits = (pattern.group - 1).bit_length()
        lanes = data.ArrayLayout(self.lane_bits, pattern.keep)
        super().__init__({"id": In(pattern.mask_bits), "lanes": Out(lanes)})

    def elaborate(self, platform: object) -> Module:
        """The decoder."""
        m = Module()
        pattern = self.pattern
        if self.how == "position-lut":
            masks = pattern.unrank(np.arange(pattern.n_masks)[:, None])
            at = np.nonzero(masks)[1].reshape(-1, pattern.keep).astype(object)
            words = [sum(int(lane) << self.lane_bits * i for i, lane in enumerate(row)) for row in at]
            width = self.lane_bits * pattern.keep
            m.d.comb += self.lanes.as_value().eq(table(m, self.id, words, width, "positions"))
            return m
        left: Value = table(m, self.id, mask_words(pattern), pattern.group, "mask")
        for i in range(pattern.keep):
            m.d.comb += self.lanes[i].eq(_lowest(left))
            if i + 1 < pattern.keep:
                rest = Signal(pattern.group, name=f"left_{i + 1}")
                m.d.comb += rest.eq(left & (left - 1))
                left = rest
        return m


def _lowest(bits: Value) -> Value:
    """Place of the lowest bit set: by halves, as a leading-zero counter does."""
    n = len(bits)
    if n == 1:
        return Const(0, 0)
    half = 1 << (n - 1).bit_length() - 1
    low, high = bits[:half], bits[half:]
    in_low = low.any()
    below = _lowest(low)
    above = _lowest(high)
    width = max(len(below), len(above))
    place = Mux(in_low, below, above)[:width] if width else Const(0, 0)
    return (place | (~in_low).as_unsigned() << width)[: width + 1] if width else ~in_low
