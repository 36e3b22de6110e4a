"""How an output-stationary machine cuts a layer for L1, and the time of its transfers.

The nest is `tile of output rows x group of output channels`, with the weights of the group in L1 beside the tile's
input, or streamed from L2 past L1. Weights may be the outer loop, when the input is read again for every group, or
the input, when the weights are read again for every tile. All weights of a layer that fit stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mvq.accel.cycle import Actions, Cycles
from mvq.accel.cycle.actions import valid_rows
from mvq.accel.cycle.model import transfer_cycles
from mvq.accel.mapping import Extent, most_input_rows
from mvq.accel.rivals.common import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """One cut.

    Attributes:
        tiles: of output rows.
        n_groups: of output channels.
        streamed: whether weights go from L2 to the array, each time they are needed.
        weight_loads: times all weights are read from L2; of streamed ones, times a position step needs them.
        input_loads: times all inputs are read from L2.
    """

    tiles: Extent
    n_groups: int
    streamed: bool
    weight_loads: int
    input_loads: int

    def position_steps(self, width: int, at_once: int) -> int:
        """Steps of an array that makes `at_once` positions at a time; the tiles are not merged."""
        tiles = self.tiles
        return (tiles.n - 1) * -(-tiles.full * width // at_once) + -(-tiles.last * width // at_once)


def tilings(job: Job, channels_at_once: int) -> Iterator[Tiling]:
    """Cuts for which L1 has room: its input twice where another one follows, its output twice, and its weights."""
    height = job.layer.out_size[0]
    most_groups = -(-job.c_out // channels_at_once)
    n_groups = sorted({most_groups, *(1 << i for i in range(most_groups.bit_length()))})
    for groups, streamed in [(1, True), *((n, False) for n in n_groups)]:
        held = 0 if streamed else -(-job.weight_bytes // groups) * (1 if groups == 1 else 2)
        rows = _most_rows(job, held)
        if not rows:
            continue
        fewest = -(-height // rows)
        for n in {fewest, min(2 * fewest, height), min(4 * fewest, height)}:
            tiles = Extent.of(height, -(-height // n))
            if streamed or groups == 1:
                yield Tiling(tiles=tiles, n_groups=groups, streamed=streamed, weight_loads=1, input_loads=1)
                continue
            inputs_again = 1 if tiles.n == 1 else groups
            yield Tiling(tiles=tiles, n_groups=groups, streamed=False, weight_loads=1, input_loads=inputs_again)
            yield Tiling(tiles=tiles, n_groups=groups, streamed=False, weight_loads=tiles.n, input_loads=1)


def _most_rows(job: Job, held: int) -> int:
    low, high = 0, job.layer.out_size[0]
    while low < high:
        middle = (low + high + 1) // 2
        if held + _tile_bytes(job, middle) <= job.like.l1_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _tile_bytes(job: Job, rows: int) -> int:
    layer = job.layer
    taken = -(-job.input_bytes * most_input_rows(layer, rows) // layer.in_size[0])
    made = -(-job.output_bytes * rows // layer.out_size[0])
    return (taken if rows >= layer.out_size[0] else 2 * taken) + 2 * made


def window_values(job: Job) -> int:
    """Input values that an array fetches for all positions once, overlaps along an output row fetched once."""
    layer = job.layer
    height, width = layer.kernel
    touched = {
        o * layer.stride[1] + x * layer.dilation[1] - layer.padding[1]
        for o in range(layer.out_size[1])
        for x in range(width)
    }
    columns = sum(0 <= column < layer.in_size[1] for column in touched)
    return layer.c_in * sum(valid_rows(layer, y) * columns for y in range(height))


def layer_time(
    job: Job, tiling: Tiling, *, compute: int, bubble: int, weight_bytes_moved: int, first_weights: int
) -> Cycles:
    """Cycles where transfers run beside the array, but those of the first weights and input and the last output.

    Args:
        job: layer.
        tiling: cut.
        compute: cycles the array works.
        bubble: cycles it fills and drains.
        weight_bytes_moved: through the weight port, in all.
        first_weights: bytes of them without which nothing starts.
    """
    layer, port = job.layer, job.like.weight_port_bits
    start = -(-8 * first_weights // port)
    weights = start + max(-(-8 * weight_bytes_moved // port) - start - compute - bubble, 0)
    share = min(tiling.tiles.full / layer.out_size[0], 1.0)
    first_in = transfer_cycles(job.like, int(job.input_bytes * share))
    last_out = transfer_cycles(job.like, int(job.output_bytes * tiling.tiles.last / layer.out_size[0]))
    moved = job.input_bytes * tiling.input_loads + job.output_bytes + layer.residual_bytes
    rest = transfer_cycles(job.like, moved) - first_in - last_out
    memory = max(first_in - start, 0) + last_out + max(rest - compute - bubble - (weights - start), 0)
    return Cycles(compute=compute, bubble=bubble, weights=weights, memory=memory)


def transfers(job: Job, tiling: Tiling, *, fetched: float, weight_reads: int) -> Actions:
    """Bytes between the memories, and what is counted for every layer alike.

    Args:
        job: layer.
        tiling: cut.
        fetched: bytes of activations from L1 to the array.
        weight_reads: times the array takes all weights, from L1 or, streamed, from L2.
    """
    layer = job.layer
    inputs = job.input_bytes * tiling.input_loads + layer.residual_bytes
    through_l1 = 0 if tiling.streamed else job.weight_bytes
    from_l2 = job.weight_bytes * (weight_reads if tiling.streamed else tiling.weight_loads)
    return Actions(
        dense_macs=layer.dense_macs,
        requantizations=layer.output_bytes,
        l1_read_bytes=round(fetched) + through_l1 * weight_reads + job.output_bytes + layer.residual_bytes,
        l1_write_bytes=inputs + through_l1 * tiling.weight_loads + job.output_bytes,
        l2_read_bytes=from_l2 + inputs,
        l2_write_bytes=job.output_bytes,
    )


def shapes(units: int) -> Iterator[tuple[int, int]]:
    """Rows, a power of two, and columns of a grid of so many units: an array that may take any aspect.

    A half of it may rest, and of that again, so that twice as many units are never worse.
    """
    for halvings in range(units.bit_length()):
        for i in range((units >> halvings).bit_length()):
            yield 1 << i, (units >> halvings) >> i
