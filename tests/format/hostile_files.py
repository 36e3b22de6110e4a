"""One file a fault: how to make it from a good one, and exactly what the reader says."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

from format_samples import canonical, digest, edited, put_together, raw_file, restreamed, small_model, take_apart

from mvq.errors import (
    BadMagicError,
    DigestError,
    FormatError,
    HeaderError,
    OverlapError,
    OversizedError,
    StreamError,
    TruncatedError,
    UnsupportedVersionError,
)
from mvq.format import to_bytes
from mvq.recipe import Recipe

GOOD = to_bytes(small_model())
Change = Callable[[bytes], bytes]


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda data: edited(data, change)


def text(old: str, new: str) -> Change:
    """The header with a piece of its text replaced."""

    def change(data: bytes) -> bytes:
        table, parsed, streams = take_apart(data)
        assert old in canonical(parsed)
        return put_together(table, canonical(parsed).replace(old, new, 1), streams)

    return change


def table(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(data: bytes) -> bytes:
        parsed, _, streams = take_apart(data)
        replacement = change(parsed)
        return raw_file(parsed if replacement is None else replacement, streams)

    return apply


def table_text(old: str, new: str) -> Change:
    def apply(data: bytes) -> bytes:
        parsed, _, streams = take_apart(data)
        raw = canonical(parsed)
        assert old in raw
        body = b"".join(streams[n] for n in sorted(streams, key=lambda n: parsed[n]["data_offsets"][0]))
        return raw_file(raw.replace(old, new, 1), {}) + body

    return apply


def stream(name: str, at: int, value: int) -> Change:
    return lambda data: restreamed(data, name, lambda content: content.__setitem__(at, value))


def put(*path: Any) -> Change:
    """The header with the value at a path replaced; the last item is the value."""

    def change(parsed: dict[str, Any]) -> None:
        at: Any = parsed
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]

    return header(change)


def _overlap(parsed: dict[str, Any]) -> None:
    names = sorted((n for n in parsed if n != "__metadata__"), key=lambda n: parsed[n]["data_offsets"][0])
    for name in names[1:]:
        parsed[name]["data_offsets"] = [offset - 2 for offset in parsed[name]["data_offsets"]]


def _drop_stream(data: bytes) -> bytes:
    """The last stream gone from table and data; the header still has it."""
    parsed, head, streams = take_apart(data)
    last = max(streams, key=lambda n: parsed[n]["data_offsets"][0])
    del parsed[last], streams[last]
    return put_together(parsed, head, streams)


def _free(parsed: dict[str, Any]) -> None:
    parsed["settings"].append(["1:1", 1, "masked"])
    parsed["codebooks"].append(["free", 1, 1])
    for name in "xyz":
        parsed["layers"].append([name, "conv", "conv", [1 << 30, 1], "vq", 3, 2, None, None])


def _many_tensors(parsed: dict[str, Any]) -> None:
    parsed["forms"].append([[f"t{i}", "bool", [0]] for i in range(1000)])
    parsed["tensors"] += [[f"m{i}.", 3] for i in range(70)]


def _long_names(parsed: dict[str, Any]) -> None:
    parsed["forms"].append([[f"t{i}", "bool", [0]] for i in range(1000)])
    parsed["tensors"] += [["m" * 1000 + f"{i}.", 3] for i in range(17)]


def _nested(parsed: dict[str, Any]) -> None:
    value: Any = 0
    for _ in range(40):
        value = [value]
    parsed["provenance"] = {"deep": value}


LENGTH = struct.unpack_from("<Q", GOOD)[0]
TABLE = canonical(take_apart(GOOD)[0])
HEADER = canonical(take_apart(GOOD)[1])
STREAM = take_apart(GOOD)[2]["tensors.int64"]
FLIPPED = bytes([STREAM[0] ^ 1]) + STREAM[1:]
TABLE_FAULT = TABLE.index('"I8"') + len('"I8,"')
HEADER_FAULT = HEADER.index('"version":') + len('"version":')
FIELDS = ", ".join(field.name for field in dataclasses.fields(Recipe))

DAMAGED = "; the file is damaged; copy it again or write it anew"
NOT_OURS = "; name a file that mvq.save or mvq compress wrote"
CASES: list[tuple[str, Change, type[FormatError], str]] = [
    ("empty", lambda data: b"", TruncatedError, "0 bytes, even an empty one has more than 8" + DAMAGED),
    ("eight bytes", lambda data: data[:8], TruncatedError, "8 bytes, even an empty one has more than 8" + DAMAGED),
    (
        "truncated in the table",
        lambda data: data[:100],
        TruncatedError,
        f"offset 0: a table of {LENGTH} bytes is announced, 92 follow" + DAMAGED,
    ),
    (
        "truncated in a stream",
        lambda data: data[:-1],
        TruncatedError,
        "stream 'tensors.bool' ends at byte 110 of the data, which has 109" + DAMAGED,
    ),
    ("trailing bytes", lambda data: data + b"\0\0", OversizedError, "2 bytes follow the last stream" + DAMAGED),
    (
        "huge table announced",
        lambda data: struct.pack("<Q", 1 << 63) + data[8:],
        OversizedError,
        "offset 0: a table of 9223372036854775808 bytes is announced, the limit is 16777216" + DAMAGED,
    ),
    (
        "not safetensors",
        lambda data: b"\x89PNG\r\n\x1a\n" * 3,
        BadMagicError,
        "not a safetensors file: no JSON table at offset 8" + NOT_OURS,
    ),
    (
        "safetensors without header",
        table(lambda t: t.pop("__metadata__") and None),
        BadMagicError,
        "a safetensors file, but its metadata holds no mvq header" + NOT_OURS,
    ),
    (
        "safetensors of others",
        table(lambda t: t.update({"__metadata__": {"format": "pt"}})),
        BadMagicError,
        "a safetensors file, but its metadata holds no mvq header" + NOT_OURS,
    ),
    (
        "header is a number",
        table(lambda t: t["__metadata__"].update(mvq=1)),
        BadMagicError,
        "a safetensors file, but its metadata holds no mvq header" + NOT_OURS,
    ),
    (
        "digest is missing",
        table(lambda t: t["__metadata__"].pop("mvq_sha256") and None),
        HeaderError,
        "metadata: expected the strings 'mvq', 'mvq_sha256' only, got the keys 'mvq'" + DAMAGED,
    ),
    (
        "more metadata",
        table(lambda t: t["__metadata__"].update(format="pt")),
        HeaderError,
        (
            "metadata: expected the strings 'mvq', 'mvq_sha256' only, got the keys 'format', 'mvq'"
            ", 'mvq_sha256'" + DAMAGED
        ),
    ),
    (
        "header is not ASCII",
        table(lambda t: t["__metadata__"].update(mvq="é")),
        HeaderError,
        "header: not ASCII" + DAMAGED,
    ),
    (
        "table is not UTF-8",
        lambda data: data.replace(b"codebooks", b"code\xffooks", 1),
        HeaderError,
        "table: not UTF-8 at offset 39" + DAMAGED,
    ),
    (
        "table is not JSON",
        table_text('"I8"', '"I8'),
        HeaderError,
        f"table: not valid JSON at character {TABLE_FAULT}: Expecting ',' delimiter" + DAMAGED,
    ),
    (
        "duplicate stream",
        table_text('"assignments":{', '"assignments":0,"assignments":{'),
        HeaderError,
        "table: key 'assignments' is given twice" + DAMAGED,
    ),
    (
        "unknown stream",
        table(lambda t: t.update(extra=t.pop("masks"))),
        HeaderError,
        "table: tensor 'extra' is not a stream of the format" + DAMAGED,
    ),
    (
        "stream entry of other keys",
        table(lambda t: t["masks"].update(more=1)),
        HeaderError,
        "table: stream 'masks': expected exactly dtype, shape and data_offsets" + DAMAGED,
    ),
    (
        "stream dtype",
        table(lambda t: t["scales"].update(dtype="I32")),
        HeaderError,
        "table: stream 'scales': dtype 'I32', must be 'F32'" + DAMAGED,
    ),
    (
        "stream shape is negative",
        table(lambda t: t["masks"].update(shape=[-5])),
        HeaderError,
        ("table: stream 'masks': shape [-5] and data_offsets [104, 108] must be one and two whole numbers" + DAMAGED),
    ),
    (
        "stream shape is boolean",
        table(lambda t: t["masks"].update(shape=[True])),
        HeaderError,
        ("table: stream 'masks': shape [True] and data_offsets [104, 108] must be one and two whole numbers" + DAMAGED),
    ),
    (
        "stream shape is a matrix",
        table(lambda t: t["masks"].update(shape=[5, 1])),
        HeaderError,
        ("table: stream 'masks': shape [5, 1] and data_offsets [104, 108] must be one and two whole numbers" + DAMAGED),
    ),
    (
        "stream shape against offsets",
        table(lambda t: t["masks"].update(shape=[6])),
        HeaderError,
        "table: stream 'masks': 6 elements of 1 bytes do not fill the bytes 104 to 108" + DAMAGED,
    ),
    (
        "offsets backwards",
        table(lambda t: t["masks"]["data_offsets"].reverse()),
        HeaderError,
        "table: stream 'masks': 4 elements of 1 bytes do not fill the bytes 108 to 104" + DAMAGED,
    ),
    (
        "overlap",
        table(_overlap),
        OverlapError,
        "stream 'scales' begins at byte 14 of the data, stream 'tensors.int64' ends at byte 16" + DAMAGED,
    ),
    (
        "gap",
        table(lambda t: t["masks"].update(data_offsets=[n + 1 for n in t["masks"]["data_offsets"]])),
        OverlapError,
        "stream 'masks' begins at byte 105 of the data, stream 'int8' ends at byte 104" + DAMAGED,
    ),
    (
        "stream missing",
        _drop_stream,
        HeaderError,
        "stream 'tensors.bool' has 0 bytes, the tables of the header need 2" + DAMAGED,
    ),
    (
        "header digest",
        table(lambda t: t["__metadata__"].update(mvq_sha256="0" * 64)),
        DigestError,
        (
            f"header: SHA-256 is {digest(HEADER)}, "
            "'0000000000000000000000000000000000000000000000000000000000000000' was recorded" + DAMAGED
        ),
    ),
    (
        "header bit flip",
        lambda data: data.replace(b"tiny", b"tinx"),
        DigestError,
        (f"header: SHA-256 is {digest(HEADER.replace('tiny', 'tinx'))}, '{digest(HEADER)}' was recorded" + DAMAGED),
    ),
    (
        "stream bit flip",
        lambda data: data[: 8 + LENGTH] + bytes([data[8 + LENGTH] ^ 1]) + data[9 + LENGTH :],
        DigestError,
        (
            f"stream 'tensors.int64' at offset {8 + LENGTH}: SHA-256 is {digest(FLIPPED)}, "
            f"{digest(STREAM)} was recorded" + DAMAGED
        ),
    ),
    (
        "header is not JSON",
        text('"version":1', '"version":'),
        HeaderError,
        f"header: not valid JSON at character {HEADER_FAULT}: Expecting value" + DAMAGED,
    ),
    ("header is a list", header(lambda h: [1]), HeaderError, "header: expected an object, got [1]" + DAMAGED),
    (
        "duplicate key",
        text('"version":1', '"version":1,"version":1'),
        HeaderError,
        "header: key 'version' is given twice" + DAMAGED,
    ),
    ("NaN", text("1.5", "NaN"), HeaderError, "header: NaN is not a JSON number" + DAMAGED),
    ("infinity", text("1.5", "-Infinity"), HeaderError, "header: -Infinity is not a JSON number" + DAMAGED),
    ("overflowing number", text("1.5", "1e999"), HeaderError, "header: number '1e999' is out of range" + DAMAGED),
    (
        "huge integer",
        text("1.5", "1" * 5000),
        HeaderError,
        (
            "header: number '1111111111111111111111111111111111111...11111111111111111111111111111"
            "111111111' has more than 19 digits" + DAMAGED
        ),
    ),
    ("deep JSON", text("1.5", "[" * 100000), HeaderError, "header: nested too deeply" + DAMAGED),
    (
        "too many values",
        text("1.5", "[" + "0," * (1 << 20) + "0]"),
        HeaderError,
        "table: more than 1048576 values" + DAMAGED,
    ),
    ("deep provenance", header(_nested), HeaderError, "provenance: nested more than 32 deep" + DAMAGED),
    (
        "version 2",
        put("version", 2),
        UnsupportedVersionError,
        "header: format version 2, this version of mvq reads 1; install a newer mvq",
    ),
    (
        "version is boolean",
        put("version", True),
        UnsupportedVersionError,
        "header: format version True, this version of mvq reads 1; install a newer mvq",
    ),
    (
        "version is missing",
        header(lambda h: h.pop("version") and None),
        UnsupportedVersionError,
        "header: format version None, this version of mvq reads 1; install a newer mvq",
    ),
    (
        "unknown key",
        put("more", 1),
        HeaderError,
        (
            "header: keys 'codebooks', 'forms', 'layers', 'more', 'provenance', 'recipe', 'setting"
            "s', 'streams', 'tensors', 'version'; must be 'codebooks', 'forms', 'layers', 'provena"
            "nce', 'recipe', 'settings', 'streams', 'tensors', 'version'" + DAMAGED
        ),
    ),
    (
        "provenance is a list",
        put("provenance", []),
        HeaderError,
        "header: provenance: expected an object, got []" + DAMAGED,
    ),
    ("recipe is null", put("recipe", None), HeaderError, "header: recipe: expected an object, got None" + DAMAGED),
    (
        "recipe field unknown",
        put("recipe", "colour", 1),
        HeaderError,
        (f"header: recipe: unknown key 'colour'; known are {FIELDS}" + DAMAGED),
    ),
    (
        "recipe value out of range",
        put("recipe", "d", 4096),
        HeaderError,
        "header: recipe: d=4096 is not in 1..256" + DAMAGED,
    ),
    (
        "recipe preset",
        put("recipe", "preset", "mvq-22x"),
        HeaderError,
        "header: recipe: preset = 'mvq-22x' is not written as this format writes it" + DAMAGED,
    ),
    (
        "recipe pattern",
        put("recipe", "pattern", "04:16"),
        HeaderError,
        "header: recipe: pattern = '04:16' is not written as this format writes it" + DAMAGED,
    ),
    (
        "recipe schema",
        put("recipe", "schema_version", 9),
        HeaderError,
        "header: recipe: schema_version 9 is not known; this version reads 1" + DAMAGED,
    ),
    (
        "recipe overrides",
        put("recipe", "overrides", 5),
        HeaderError,
        "header: recipe: overrides=5 is not a table of {glob: {field: value}}" + DAMAGED,
    ),
    ("settings", put("settings", {}), HeaderError, "header: settings: expected a list, got {}" + DAMAGED),
    (
        "setting of two",
        put("settings", 0, ["2:4", 4]),
        HeaderError,
        "header: settings[0]: expected a list of 3, got ['2:4', 4]" + DAMAGED,
    ),
    (
        "setting pattern",
        put("settings", 0, 0, "5:4"),
        HeaderError,
        (
            "header: settings[0]: pattern 5:4: N:M keeps N of every M weights, so N must lie in 1."
            ".M; write the smaller number first, as in 4:16" + DAMAGED
        ),
    ),
    (
        "setting pattern digits",
        put("settings", 0, 0, "2:04"),
        HeaderError,
        "header: settings[0]: pattern '2:04' must be written '2:4'" + DAMAGED,
    ),
    ("setting d", put("settings", 0, 1, 6), HeaderError, "header: settings[0]: d=6 is not a multiple of M=4" + DAMAGED),
    (
        "setting d range",
        put("settings", 0, 1, 512),
        HeaderError,
        "header: settings[0]: d: 512 is not a whole number in 1..256" + DAMAGED,
    ),
    (
        "setting kind",
        put("settings", 0, 2, "mixed"),
        HeaderError,
        "header: settings[0]: codeword kind: 'mixed' is not one of masked, packed" + DAMAGED,
    ),
    (
        "codebook row",
        put("codebooks", 0, 7),
        HeaderError,
        "header: codebooks[0]: expected a list of 3, got 7" + DAMAGED,
    ),
    (
        "codebook key",
        put("codebooks", 0, 0, 7),
        HeaderError,
        "header: codebooks[0]: key: expected a string, got 7" + DAMAGED,
    ),
    (
        "codebook key length",
        put("codebooks", 0, 0, "x" * 2000),
        HeaderError,
        "header: codebooks[0]: key: 2000 characters, more than the limit of 1024" + DAMAGED,
    ),
    (
        "codebook twice",
        put("codebooks", 0, 0, "network.0"),
        HeaderError,
        "header: codebook 'network.0' appears twice" + DAMAGED,
    ),
    (
        "codebook size 0",
        put("codebooks", 0, 1, 0),
        HeaderError,
        "header: codebooks[0]: number of codewords: 0 is not a whole number in 1..65536" + DAMAGED,
    ),
    (
        "codebook size",
        put("codebooks", 0, 1, 65537),
        HeaderError,
        "header: codebooks[0]: number of codewords: 65537 is not a whole number in 1..65536" + DAMAGED,
    ),
    (
        "codebook width",
        put("codebooks", 0, 2, 1.0),
        HeaderError,
        "header: codebooks[0]: width: 1.0 is not a whole number in 1..256" + DAMAGED,
    ),
    (
        "codebook width against its layer",
        put("codebooks", 0, 2, 3),
        HeaderError,
        (
            "header: layer 'a.conv': codebook 'a.conv' has width 3, masked codewords of d=4, patte"
            "rn 2:4 need 4" + DAMAGED
        ),
    ),
    ("layer row", put("layers", 0, "stem"), HeaderError, "header: layers[0]: expected a list, got 'stem'" + DAMAGED),
    (
        "layer row is short",
        put("layers", 1, ["x", "conv", "conv", [1, 1], "vq"]),
        HeaderError,
        "header: layers[1]: expected a list of 9, got ['x', 'conv', 'conv', [1, 1], 'vq']" + DAMAGED,
    ),
    (
        "layer storage",
        put("layers", 0, 4, "int4"),
        HeaderError,
        "header: layers[0]: storage: 'int4' is not one of vq, int8, dense" + DAMAGED,
    ),
    (
        "layer name",
        put("layers", 0, 0, None),
        HeaderError,
        "header: layers[0]: name: expected a string, got None" + DAMAGED,
    ),
    ("layer twice", put("layers", 0, 0, "a.conv"), HeaderError, "header: layer 'a.conv' appears twice" + DAMAGED),
    (
        "layer kind",
        put("layers", 0, 1, "pool"),
        HeaderError,
        "header: layer 'stem': kind: 'pool' is not one of conv, linear" + DAMAGED,
    ),
    (
        "layer role",
        put("layers", 0, 2, "last"),
        HeaderError,
        ("header: layer 'stem': role: 'last' is not one of first_conv, conv, depthwise, linear, classifier" + DAMAGED),
    ),
    (
        "layer shape",
        put("layers", 0, 3, 8),
        HeaderError,
        "header: layer 'stem': shape: expected a list, got 8" + DAMAGED,
    ),
    ("layer axes", put("layers", 0, 3, [8]), HeaderError, "header: layer 'stem': shape has 1 axes, not 2..8" + DAMAGED),
    (
        "layer shape is negative",
        put("layers", 0, 3, 0, -2),
        HeaderError,
        "header: layer 'stem': axis of the shape: -2 is not a whole number in 0..2147483647" + DAMAGED,
    ),
    (
        "layer shape is boolean",
        put("layers", 0, 3, 1, True),
        HeaderError,
        "header: layer 'stem': axis of the shape: True is not a whole number in 0..2147483647" + DAMAGED,
    ),
    (
        "layer shape overflows",
        put("layers", 0, 3, [1 << 30, 1 << 30, 1, 1]),
        HeaderError,
        ("header: layer 'stem': shape [1073741824, 1073741824, 1, 1] has more than 281474976710656 elements" + DAMAGED),
    ),
    (
        "layer setting",
        put("layers", 1, 5, 3),
        HeaderError,
        "header: layer 'a.conv': setting: 3 is not a whole number in 0..2" + DAMAGED,
    ),
    (
        "layer codebook",
        put("layers", 1, 6, -1),
        HeaderError,
        "header: layer 'a.conv': codebook: -1 is not a whole number in 0..1" + DAMAGED,
    ),
    (
        "layer sse",
        put("layers", 1, 7, -0.5),
        HeaderError,
        "header: layer 'a.conv': masked_sse: -0.5 is neither null nor a number of at least 0" + DAMAGED,
    ),
    (
        "layer sse is text",
        put("layers", 1, 8, "1"),
        HeaderError,
        "header: layer 'a.conv': total_sse: '1' is neither null nor a number of at least 0" + DAMAGED,
    ),
    (
        "layer larger than its data",
        put("layers", 1, 3, 1, 300),
        HeaderError,
        "stream 'assignments' has 6 bytes, the tables of the header need 228" + DAMAGED,
    ),
    (
        "layers that take no bits",
        header(_free),
        HeaderError,
        "header: layers: 3221225472 subvectors that take no bits, more than the limit of 1048576" + DAMAGED,
    ),
    ("forms", put("forms", None), HeaderError, "header: forms: expected a list, got None" + DAMAGED),
    (
        "form row",
        put("forms", 0, 0, ["weight", "float16"]),
        HeaderError,
        "header: forms[0][0]: expected a list of 3, got ['weight', 'float16']" + DAMAGED,
    ),
    (
        "form name",
        put("forms", 0, 0, 0, 3),
        HeaderError,
        "header: forms[0][0]: name: expected a string, got 3" + DAMAGED,
    ),
    (
        "form dtype",
        put("forms", 0, 0, 1, "complex64"),
        HeaderError,
        (
            "header: forms[0][0]: dtype: 'complex64' is not one of bool, float16, float32, float64"
            ", int16, int32, int64, int8, uint8" + DAMAGED
        ),
    ),
    (
        "form axes",
        put("forms", 0, 0, 2, [1] * 17),
        HeaderError,
        "header: forms[0][0]: shape has 17 axes, not 0..16" + DAMAGED,
    ),
    (
        "form overflows",
        put("forms", 0, 0, 2, [1 << 30] * 3),
        HeaderError,
        (
            "header: forms[0][0]: shape [1073741824, 1073741824, 1073741824] has more than 2814749"
            "76710656 elements" + DAMAGED
        ),
    ),
    (
        "tensor prefix",
        put("tensors", 0, 0, 1),
        HeaderError,
        "header: tensors[0]: prefix: expected a string, got 1" + DAMAGED,
    ),
    (
        "tensor form",
        put("tensors", 0, 1, 4),
        HeaderError,
        "header: tensors[0]: form: 4 is not a whole number in 0..2" + DAMAGED,
    ),
    ("tensor twice", put("tensors", 1, 0, "bn1."), HeaderError, "header: tensor 'bn1.weight' appears twice" + DAMAGED),
    (
        "tensor name length",
        header(lambda h: h["tensors"].__setitem__(0, ["p" * 1020, 0])),
        HeaderError,
        "header: tensor name: 1026 characters, more than the limit of 1024" + DAMAGED,
    ),
    (
        "too many tensors",
        header(_many_tensors),
        HeaderError,
        "header: tensors: more than 65536 tensors or 16777216 characters of names" + DAMAGED,
    ),
    (
        "too long names",
        header(_long_names),
        HeaderError,
        "header: tensors: more than 65536 tensors or 16777216 characters of names" + DAMAGED,
    ),
    (
        "too many rows",
        put("tensors", [["", 0]] * 65537),
        HeaderError,
        "header: tensors: 65537 rows, more than the limit of 65536" + DAMAGED,
    ),
    (
        "dense weight missing",
        put("tensors", 3, 0, "tail."),
        HeaderError,
        "header: layer 'head': needs tensor 'head.weight' of shape [2, 3], which is missing" + DAMAGED,
    ),
    (
        "dense weight of other shape",
        put("layers", 4, 3, [3, 2]),
        HeaderError,
        "header: layer 'head': needs tensor 'head.weight' of shape [3, 2], got [2, 3]" + DAMAGED,
    ),
    (
        "stream without digest",
        header(lambda h: h["streams"].pop("masks") and None),
        HeaderError,
        (
            "header: streams 'assignments', 'codebooks', 'int8', 'scales', 'tensors.bool', 'tensor"
            "s.float16', 'tensors.float32', 'tensors.int64' have digests; the tables need 'assignm"
            "ents', 'codebooks', 'int8', 'masks', 'scales', 'tensors.bool', 'tensors.float16', 'te"
            "nsors.float32', 'tensors.int64'" + DAMAGED
        ),
    ),
    (
        "digest is short",
        put("streams", "masks", "abc"),
        HeaderError,
        "header: streams: 'abc' of 'masks' is not a SHA-256 in hexadecimal" + DAMAGED,
    ),
    (
        "digest is upper case",
        put("streams", "masks", "A" * 64),
        HeaderError,
        (
            "header: streams: 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' o"
            "f 'masks' is not a SHA-256 in hexadecimal" + DAMAGED
        ),
    ),
    ("digests are a list", put("streams", []), HeaderError, "header: streams: expected an object, got []" + DAMAGED),
    (
        "assignment padding",
        stream("assignments", 2, 0x80),
        StreamError,
        "layer 'a.conv': assignments: bit stream: padding bits of the last byte 0x80 are not zero" + DAMAGED,
    ),
    (
        "assignment range",
        stream("assignments", 0, 0xFF),
        StreamError,
        "layer 'a.conv': assignments: entry 0 is 7, not in 0..4" + DAMAGED,
    ),
    (
        "mask padding",
        stream("masks", 2, 0x80),
        StreamError,
        "layer 'a.conv': masks: bit stream: padding bits of the last byte 0x80 are not zero" + DAMAGED,
    ),
    ("mask range", stream("masks", 0, 0xFF), StreamError, "layer 'a.conv': masks: entry 0 is 7, not in 0..5" + DAMAGED),
    (
        "scale is NaN",
        lambda data: restreamed(data, "scales", lambda s: s.__setitem__(slice(4, 8), b"\0\0\xc0\x7f")),
        StreamError,
        "stream 'scales': entry 1 is nan, not positive and finite" + DAMAGED,
    ),
    (
        "scale is zero",
        lambda data: restreamed(data, "scales", lambda s: s.__setitem__(slice(0, 4), bytes(4))),
        StreamError,
        "stream 'scales': entry 0 is 0.0, not positive and finite" + DAMAGED,
    ),
    (
        "scale is negative",
        lambda data: restreamed(data, "scales", lambda s: s.__setitem__(slice(8, 12), b"\0\0\x80\xbf")),
        StreamError,
        "stream 'scales': entry 2 is -1.0, not positive and finite" + DAMAGED,
    ),
    (
        "boolean is 2",
        stream("tensors.bool", 1, 2),
        StreamError,
        "stream 'tensors.bool': byte 1 is 2, not 0 or 1" + DAMAGED,
    ),
]
