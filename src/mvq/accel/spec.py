"""One frozen description of a machine, from which all views of it are made.

The machine is that of `docs/spec/machine.md`: an H x L array whose rows take input channels and whose columns make
output channels, cut into tiles of d columns; a weight loader that turns stored words into weights; two levels of
memory and DRAM.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from mvq.errors import ConfigError, FileError
from mvq.patterns import Pattern

Dataflow = Literal["ews", "ws"]
Weights = Literal["int8", "vq", "nm", "mvq"]
Codewords = Literal["masked", "packed"]
Tile = Literal["dense", "sparse"]
MaskDecode = Literal["lzc", "position-lut"]
CodebookMemory = Literal["registers", "sram"]
Dram = Literal["lpddr4", "lpddr", "ddr3", "gddr5", "hbm2"]

_SIDES = (16, 32, 64)
_MIB = 1 << 20
_MAX_SIDE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorSpec:
    """A machine.

    Attributes:
        name: for people and file names.
        dataflow: `ews` keeps up to `wrf_entries` weights in each processing element and reuses activations and partial
            sums between them; `ws` keeps one.
        weights: what is stored: `int8` every weight; `vq` codeword indices of common vector quantization; `nm` the kept
            weights and mask ids; `mvq` codeword indices and mask ids.
        codewords: of `mvq`: `masked` have d values, `packed` the Q kept ones.
        tile: `dense` has d multipliers for d columns of a row, `sparse` Q.
        mask_decode: how a mask id becomes positions in a sparse tile: cascaded leading-zero counters behind a table of
            masks, or a table of positions.
        rows: H, input channels at a time.
        cols: L, output channels at a time; a multiple of d.
        pattern: N:M, of `nm` and `mvq`; otherwise `1:1`.
        d: lanes of a subvector, which are the columns of a tile.
        n_codewords: the codebook register file holds, at most.
        codebook_memory: `registers` with a read port for each word of an array row, or `sram`: a copy for each.
        activation_bits: of an activation.
        weight_bits: of a weight and of a codeword's value.
        psum_bits: of a partial sum.
        wrf_entries: weights of a processing element.
        arf_entries: activations kept for a row.
        prf_entries: partial sums kept for a column.
        weight_port_bits: from L2 to the weight loader in a cycle.
        dma_bits: between L2 and L1 in a cycle, both directions together.
        l1_bytes: of the memory of activations and partial sums.
        l2_bytes: of the memory of weights and feature maps.
        dram: its kind, which tables may price.
        dram_gbytes_per_s: bandwidth of DRAM in 1e9 bytes a second.
        clock_mhz: of everything.
        zero_gating: multipliers hold their inputs where weight or activation is zero.

    Raises:
        ConfigError: listing every fault at once.
    """

    name: str
    dataflow: Dataflow = "ews"
    weights: Weights = "mvq"
    codewords: Codewords = "masked"
    tile: Tile = "sparse"
    mask_decode: MaskDecode = "lzc"
    rows: int = 64
    cols: int = 64
    pattern: Pattern | str = "4:16"
    d: int = 16
    n_codewords: int = 512
    codebook_memory: CodebookMemory = "registers"
    activation_bits: int = 8
    weight_bits: int = 8
    psum_bits: int = 32
    wrf_entries: int = 16
    arf_entries: int = 16
    prf_entries: int = 16
    weight_port_bits: int = 128
    dma_bits: int = 64
    l1_bytes: int = 256 << 10
    l2_bytes: int = 2 * _MIB
    dram: Dram = "lpddr4"
    dram_gbytes_per_s: float = 12.8
    clock_mhz: float = 300.0
    zero_gating: bool = True

    def __post_init__(self) -> None:
        faults = []
        if isinstance(self.pattern, str):
            try:
                object.__setattr__(self, "pattern", Pattern.parse(self.pattern))
            except ConfigError as error:
                faults.append(str(error))
        faults += [*_choices(self), *_numbers(self)]
        if not faults:
            faults = _contradictions(self)
        if faults:
            raise ConfigError("\n".join(f"accelerator {self.name!r}: {fault}" for fault in faults))

    @property
    def nm(self) -> Pattern:
        """The pattern, parsed."""
        assert isinstance(self.pattern, Pattern)
        return self.pattern

    @property
    def q(self) -> int:
        """Weights kept of d, `N / M * d`."""
        return self.nm.kept_per(self.d)

    @property
    def multipliers_per_tile_row(self) -> int:
        """Multipliers for d columns of one row."""
        return self.q if self.tile == "sparse" else self.d

    @property
    def n_multipliers(self) -> int:
        """Of the whole array."""
        return self.rows * (self.cols // self.d) * self.multipliers_per_tile_row

    @property
    def has_codebook(self) -> bool:
        """Whether weights come out of a codebook register file."""
        return self.weights in ("vq", "mvq")

    @property
    def has_masks(self) -> bool:
        """Whether stored words carry mask ids."""
        return self.weights in ("nm", "mvq")

    @property
    def codeword_width(self) -> int:
        """Values of a codeword; 0 without a codebook."""
        if not self.has_codebook:
            return 0
        return self.q if self.weights == "mvq" and self.codewords == "packed" else self.d

    @property
    def index_bits(self) -> int:
        """Of a codeword index; 0 without a codebook."""
        return (self.n_codewords - 1).bit_length() if self.has_codebook else 0

    @property
    def mask_id_bits(self) -> int:
        """Of the mask ids of d lanes; 0 without masks."""
        return self.d // self.nm.group * self.nm.mask_bits if self.has_masks else 0

    @property
    def lane_bits(self) -> int:
        """Of the position that a sparse tile keeps beside each weight: a lane of its M."""
        return (self.nm.group - 1).bit_length()

    @property
    def psum_bytes(self) -> int:
        """Of a partial sum in L1."""
        return -(-self.psum_bits // 8)

    @property
    def word_bits(self) -> int:
        """Stored bits of one subvector, codebook not counted."""
        plain = {"int8": self.d, "nm": self.q}.get(self.weights, 0) * self.weight_bits
        return plain + self.index_bits + self.mask_id_bits

    @property
    def words_per_row(self) -> int:
        """Subvectors of one row of the array, which the loader decodes in a cycle."""
        return self.cols // self.d

    @property
    def codebook_bits(self) -> int:
        """Capacity of the codebook register file."""
        return self.n_codewords * self.codeword_width * self.weight_bits if self.has_codebook else 0

    @property
    def peak_executed_tops(self) -> float:
        """Multiplications and additions of the multipliers, in 1e12 a second."""
        return 2 * self.n_multipliers * self.clock_mhz * 1e-6

    @property
    def peak_equivalent_tops(self) -> float:
        """The same with pruned weights counted as if they were multiplied."""
        return 2 * self.rows * self.cols * self.clock_mhz * 1e-6

    @property
    def dram_bytes_per_cycle(self) -> float:
        """Bandwidth of DRAM in a clock cycle."""
        return self.dram_gbytes_per_s * 1e3 / self.clock_mhz

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as TOML has them."""
        return {**dataclasses.asdict(self), "pattern": str(self.pattern)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AcceleratorSpec:
        """Read plain values; those left out have their defaults, or come from the preset that `preset` names.

        Raises:
            ConfigError: on an unknown key, a missing name, or as the constructor.
        """
        values = dict(data)
        base = values.pop("preset", None)
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(
                f"accelerator {values.get('name')!r}: unknown keys {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(known)}, and preset"
            )
        if base is not None:
            return dataclasses.replace(preset(base), **values)
        if "name" not in values:
            raise ConfigError("accelerator: it has no name; give name, or preset to start from")
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | Path) -> AcceleratorSpec:
        """Read a file.

        Raises:
            FileError: if it cannot be read.
            ConfigError: if it is not TOML, or as `from_dict`.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(f"accelerator {str(path)!r} cannot be read: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"accelerator {str(path)!r} is not TOML: {error}") from error
        return cls.from_dict(data)

    def to_toml(self) -> str:
        """A file that `from_toml` reads."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in self.to_dict().items())


def machine_of(text: str) -> AcceleratorSpec:
    """A preset by name, or what a file that ends in `.toml` describes.

    Raises:
        FileError: if the file cannot be read.
        ConfigError: if there is no such preset, or as `AcceleratorSpec.from_toml`.
    """
    return AcceleratorSpec.from_toml(text) if text.endswith(".toml") else preset(text)


def preset(name: str) -> AcceleratorSpec:
    """A machine of the paper's comparison, or one of ours, at a side of 16, 32 or 64.

    Names are `KIND-SIDE`: `ws`, `ews` (int8 weights), `ews-nm` (kept int8 weights and masks), `ews-c` (common vector
    quantization, k = 1024, d = 8), `ews-cm` (MVQ, dense tile), `ews-cms` and `ws-cms` (MVQ, sparse tile; 4:16, k = 512,
    d = 16), `ews-p` (the same with packed codewords and a table of positions).

    Raises:
        ConfigError: if there is none of that name.
    """
    kind, _, side = name.rpartition("-")
    if kind not in _KINDS or side not in map(str, _SIDES):
        raise ConfigError(f"accelerator {name!r} is not known; known are {', '.join(PRESETS)}, or a TOML file")
    n = int(side)
    l1 = (128 if n == 16 else 256) << 10
    return _KINDS[kind](AcceleratorSpec(name=name, rows=n, cols=n, l1_bytes=l1))


def _changed(**values: Any) -> Callable[[AcceleratorSpec], AcceleratorSpec]:
    return lambda spec: dataclasses.replace(spec, **values)


_DENSE = {"weights": "int8", "tile": "dense", "pattern": "1:1"}
#: One weight in use and the next one being loaded.
_WS = {"dataflow": "ws", "wrf_entries": 2, "arf_entries": 1, "prf_entries": 1}
_KINDS: dict[str, Callable[[AcceleratorSpec], AcceleratorSpec]] = {
    "ws": _changed(**_WS, **_DENSE),
    "ews": _changed(**_DENSE),
    "ews-nm": _changed(weights="nm"),
    "ews-c": _changed(weights="vq", tile="dense", pattern="1:1", d=8, n_codewords=1024),
    "ews-cm": _changed(tile="dense"),
    "ews-cms": _changed(),
    "ws-cms": _changed(**_WS),
    "ews-p": _changed(codewords="packed", mask_decode="position-lut"),
}
PRESETS = tuple(f"{kind}-{side}" for kind in _KINDS for side in _SIDES)


def _choices(spec: AcceleratorSpec) -> list[str]:
    faults = []
    for key, kind in get_type_hints(AcceleratorSpec).items():
        allowed = get_args(kind)
        value = getattr(spec, key)
        if allowed and all(isinstance(choice, str) for choice in allowed) and value not in allowed:
            faults.append(f"{key}={value!r} is not one of {', '.join(allowed)}")
    if not isinstance(spec.name, str) or not spec.name or not spec.name.isprintable():
        faults.append(f"name={spec.name!r} is not a printable text")
    if not isinstance(spec.zero_gating, bool):
        faults.append(f"zero_gating={spec.zero_gating!r} is not true or false")
    return faults


def _numbers(spec: AcceleratorSpec) -> list[str]:
    faults = []
    bounds = {"rows": _MAX_SIDE, "cols": _MAX_SIDE, "activation_bits": 16, "weight_bits": 16, "psum_bits": 64, "d": 64}
    for f in dataclasses.fields(spec):
        value, most = getattr(spec, f.name), bounds.get(f.name, 1 << 40)
        if f.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
            faults.append(f"{f.name}={value!r} is not a whole number in 1..{most}")
        elif f.type == "float" and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf
        ):
            faults.append(f"{f.name}={value!r} is not positive and finite")
    return faults


def _contradictions(spec: AcceleratorSpec) -> list[str]:
    faults = []
    if spec.cols % spec.d:
        faults.append(f"cols={spec.cols} is not a multiple of d={spec.d}; a tile has d columns")
    if spec.d % spec.nm.group:
        faults.append(f"d={spec.d} is not a multiple of M={spec.nm.group} of pattern {spec.pattern}")
    if not spec.has_masks and not spec.nm.is_dense:
        faults.append(f"weights={spec.weights!r} has no masks, pattern={spec.pattern} needs them; set pattern to 1:1")
    if spec.tile == "sparse" and not spec.has_masks:
        faults.append(f"tile='sparse' needs masks, weights={spec.weights!r} has none; set tile='dense'")
    if spec.codewords == "packed" and spec.weights != "mvq":
        faults.append(f"codewords='packed' is for weights='mvq', not {spec.weights!r}; set codewords='masked'")
    if spec.codewords == "packed" and spec.tile == "dense":
        faults.append("codewords='packed' lists kept weights, which a dense tile cannot place; set tile='sparse'")
    least = spec.activation_bits + spec.weight_bits
    if spec.psum_bits < least:
        faults.append(f"psum_bits={spec.psum_bits} cannot hold one product of {least} bits")
    if spec.dataflow == "ws" and (spec.wrf_entries > 2 or spec.arf_entries > 1 or spec.prf_entries > 1):
        faults.append(
            "dataflow='ws' reuses nothing between weights: wrf_entries is 2 at most, arf_entries and prf_entries are 1"
        )
    return faults


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON text of printable characters is a TOML one.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
