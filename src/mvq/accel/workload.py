"""What a machine is asked to do: the shapes of a network's layers, and how their weights are stored."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mvq.accel.network.graph import Add, Clamp, Conv, IntegerNetwork, Linear, Lookup, Rescale
from mvq.accel.spec import AcceleratorSpec
from mvq.compressed import VQLayer
from mvq.errors import ConfigError, FileError
from mvq.patterns import Pattern

_DENSE = Pattern(1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A convolution; a fully connected layer is one of 1x1 on one position.

    Attributes:
        name: in tables.
        c_in: input channels of all groups.
        c_out: output channels of all groups.
        groups: of channels.
        kernel: height and width.
        stride: down and right.
        dilation: down and right.
        padding: top, left, bottom, right.
        in_size: height and width of the input.
        compressed: whether weights are stored as the machine stores compressed ones; otherwise int8.
        pattern: N:M of a compressed layer's masks; machines without masks run it dense.
        index_bits: of a codeword index in this layer; None for those of the machine's codebook.
        lanes: of a stored subvector; None for the machine's d.
        residual_bytes: of other tensors that are added to the output.

    Raises:
        ConfigError: listing every fault at once.
    """

    name: str
    c_in: int
    c_out: int
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    in_size: tuple[int, int] = (1, 1)
    compressed: bool = False
    pattern: Pattern = _DENSE
    index_bits: int | None = None
    lanes: int | None = None
    residual_bytes: int = 0
    #: Height and width of the output.
    out_size: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faults = []
        numbers = {"c_in": (self.c_in,), "c_out": (self.c_out,), "groups": (self.groups,), "kernel": self.kernel}
        numbers |= {"stride": self.stride, "dilation": self.dilation, "in_size": self.in_size}
        for key, values in numbers.items():
            if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
                faults.append(f"{key}={getattr(self, key)!r} is not of whole numbers of at least 1")
        if any(not isinstance(v, int) or v < 0 for v in self.padding):
            faults.append(f"padding={self.padding!r} is not of whole numbers of at least 0")
        if not faults:
            object.__setattr__(self, "out_size", self._out_size())
            if self.c_in % self.groups or self.c_out % self.groups:
                faults.append(f"groups={self.groups} divides not both {self.c_in} and {self.c_out} channels")
            if min(self.out_size) < 1:
                faults.append(f"kernel {self.kernel} does not fit into the padded input {self.in_size}")
            if not self.compressed and not self.pattern.is_dense:
                faults.append(f"pattern={self.pattern} is for compressed layers")
        if faults:
            raise ConfigError("\n".join(f"layer {self.name!r}: {fault}" for fault in faults))

    def _out_size(self) -> tuple[int, int]:
        top, left, bottom, right = self.padding
        height, width = self.in_size[0] + top + bottom, self.in_size[1] + left + right
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        return (height - spans[0]) // self.stride[0] + 1, (width - spans[1]) // self.stride[1] + 1

    @property
    def n_positions(self) -> int:
        """Output positions."""
        return self.out_size[0] * self.out_size[1]

    @property
    def n_points(self) -> int:
        """Kernel points."""
        return self.kernel[0] * self.kernel[1]

    @property
    def n_weights(self) -> int:
        """Weights, pruned ones included."""
        return self.c_out * self.c_in // self.groups * self.n_points

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates with every weight."""
        return self.n_weights * self.n_positions

    @property
    def input_bytes(self) -> int:
        """Of the int8 input."""
        return self.c_in * self.in_size[0] * self.in_size[1]

    @property
    def output_bytes(self) -> int:
        """Of the int8 output."""
        return self.c_out * self.n_positions

    def density_on(self, spec: AcceleratorSpec) -> float:
        """Share of the weights that are kept; where M does not divide the lanes, up to N of the last ones."""
        if not self.uses_masks(spec):
            return 1.0
        full, rest = divmod(self.c_out, self.pattern.group)
        return (full * self.pattern.keep + min(self.pattern.keep, rest)) / self.c_out

    def is_plain_on(self, spec: AcceleratorSpec) -> bool:
        """Whether the machine stores codes themselves, without padding of the last subvector."""
        return not self.compressed or spec.weights == "int8"

    def keeps_codebook_on(self, spec: AcceleratorSpec) -> bool:
        """Whether it stores the layer's own indices; without masks a machine has another codebook for masked layers."""
        return self.compressed and (spec.weights == "mvq" or (spec.weights == "vq" and self.pattern.is_dense))

    def row_bits(self, spec: AcceleratorSpec, columns: int) -> int:
        """Stored bits of so many output channels at one input channel and kernel point, in each pass.

        Args:
            spec: machine.
            columns: output channels of one group, of which a multiple of d come before.
        """
        if not self.is_plain_on(spec):
            return -(-columns // spec.d) * self.word_bits(spec)
        if spec.tile == "dense":
            return columns * spec.weight_bits
        full, rest = divmod(columns, spec.d)
        blocks, rest_lanes = divmod(rest, spec.nm.group)
        return (full * spec.q + blocks * spec.nm.keep + min(rest_lanes, spec.nm.keep)) * spec.weight_bits

    def uses_masks(self, spec: AcceleratorSpec) -> bool:
        """Whether the machine stores masks for this layer."""
        return self.compressed and spec.has_masks and not self.pattern.is_dense

    def executed_macs(self, spec: AcceleratorSpec) -> int:
        """Multiplications that reach a multiplier: a dense tile multiplies pruned weights too."""
        density = self.density_on(spec) if spec.tile == "sparse" else 1.0
        return round(self.dense_macs * density)

    def word_bits(self, spec: AcceleratorSpec) -> int:
        """Stored bits of the d lanes of a subvector."""
        if self.is_plain_on(spec):
            return spec.d * spec.weight_bits
        masks = spec.d // self.pattern.group * self.pattern.mask_bits if self.uses_masks(spec) else 0
        if spec.weights == "nm":
            kept = self.pattern.kept_per(spec.d) if self.uses_masks(spec) else spec.d
            return kept * spec.weight_bits + masks
        if not self.keeps_codebook_on(spec):
            return spec.index_bits
        subvectors = spec.d // (self.lanes or spec.d)
        return subvectors * (spec.index_bits if self.index_bits is None else self.index_bits) + masks

    def codebook_bits(self, spec: AcceleratorSpec) -> int:
        """Of the codebook that is loaded before the layer."""
        return spec.codebook_bits if self.compressed and spec.has_codebook else 0

    def fault_on(self, spec: AcceleratorSpec) -> str | None:
        """Why the machine cannot take the weights as they are stored; None if it can."""
        if self.uses_masks(spec) and spec.d % self.pattern.group:
            return f"pattern {self.pattern} does not fit subvectors of d={spec.d}"
        if self.keeps_codebook_on(spec):
            if spec.d % (self.lanes or spec.d):
                return f"its subvectors have {self.lanes} lanes, of which d={spec.d} is no multiple"
            if (self.index_bits or 0) > spec.index_bits:
                return f"its indices have {self.index_bits} bits, those of n_codewords={spec.n_codewords} fewer"
        return None

    def passes(self, spec: AcceleratorSpec) -> int:
        """How often a position's weights go through the multipliers: N of each M lanes of a sparse tile at a time."""
        if spec.tile == "dense":
            return 1
        if self.uses_masks(spec):
            return -(-self.pattern.kept_per(spec.d) // spec.q)
        # Codewords are d lanes wide whatever the layer has.
        lanes = spec.nm.group if self.compressed else min(spec.nm.group, self.c_out // self.groups)
        return -(-lanes // spec.nm.keep)


def as_the_machine_stores(layer: Layer) -> Layer:
    """The same work with the subvectors and indices of whatever machine it runs on: to compare machines."""
    return replace(layer, index_bits=None, lanes=None)


def read_topology(path: str | Path, pattern: Pattern = _DENSE) -> list[Layer]:
    """Shapes from a topology file of SCALE-Sim.

    After a header, a line has name, input height and width (padded), filter height and width, channels, filters and
    stride, of which a second one goes right. As in SCALE-Sim, a name with `DP` is of a depth-wise layer, whose filters
    are counted by the channel.

    Args:
        path: CSV file.
        pattern: of all layers but the first and the depth-wise ones, which are stored compressed unless it is dense.

    Raises:
        FileError: if it cannot be read.
        ConfigError: listing every line that is not such a layer.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            lines = [[cell.strip() for cell in line if cell.strip()] for line in csv.reader(file)][1:]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"topology {str(path)!r} cannot be read: {error}") from error
    layers, faults = [], []
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        try:
            name, values = line[0], [int(cell) for cell in line[1:]]
            height, width, rows, columns, channels, filters, down = values[:7]
            right = values[7] if len(values) == 8 else down
            groups = channels if "DP" in name else 1
            if len(values) > 8:
                raise ValueError(f"{len(values)} numbers")
            compressed = bool(layers) and not pattern.is_dense and "DP" not in name
            layers.append(
                Layer(
                    name=name,
                    c_in=channels,
                    c_out=filters * groups,
                    groups=groups,
                    kernel=(rows, columns),
                    stride=(down, right),
                    in_size=(height, width),
                    compressed=compressed,
                    pattern=pattern if compressed else _DENSE,
                )
            )
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults or not layers:
        text = "\n".join(faults) or "it has no layer"
        raise ConfigError(f"topology {str(path)!r}: expected name, 7 or 8 whole numbers a line: {text}")
    return layers


def layers_of(network: IntegerNetwork) -> list[Layer]:
    """The convolutions and fully connected layers of an integer network, in the order they run.

    What an addition adds to a layer's output counts as its residual; other operations between layers are free.
    """
    convolutions = [node for node in network.nodes if isinstance(node, Conv | Linear)]
    makers, residual = _makers(network), dict.fromkeys((node.name for node in convolutions), 0)
    for node in network.nodes:
        if isinstance(node, Add):
            latest = max(node.inputs, key=lambda name: makers.get(name, (-1, ""))[0])
            maker = makers.get(latest)
            if maker is not None:
                residual[maker[1]] += sum(_n_bytes(network, name) for name in node.inputs if name != latest)
    return [_layer(network, node, residual[node.name]) for node in convolutions]


def _makers(network: IntegerNetwork) -> dict[str, tuple[int, str]]:
    """Which layer a tensor comes from, and how late it runs, through operations that work value by value."""
    makers: dict[str, tuple[int, str]] = {}
    for i, node in enumerate(network.nodes):
        if isinstance(node, Conv | Linear):
            makers[node.name] = (i, node.name)
        elif isinstance(node, Clamp | Lookup | Rescale | Add):
            known = [makers[name] for name in node.inputs if name in makers]
            if known:
                makers[node.name] = max(known)
    return makers


def _n_bytes(network: IntegerNetwork, name: str) -> int:
    return math.prod(network.tensors[name].shape)


def _layer(network: IntegerNetwork, node: Conv | Linear, residual_bytes: int) -> Layer:
    stored = next(layer for layer in network.weights.layers if layer.name == node.layer)
    taken = network.tensors[node.inputs[0]].shape
    shape: dict[str, Any] = {"name": node.layer, "c_in": taken[0], "c_out": stored.shape[0]}
    if isinstance(node, Conv):
        shape |= {"groups": node.groups, "kernel": stored.shape[2:], "in_size": taken[1:], "padding": node.padding}
        shape |= {"stride": node.stride, "dilation": node.dilation}
    if isinstance(stored, VQLayer):
        bits = (stored.n_codewords - 1).bit_length()
        shape |= {"compressed": True, "pattern": stored.pattern, "index_bits": bits, "lanes": stored.d}
    return Layer(**shape, residual_bytes=residual_bytes)
