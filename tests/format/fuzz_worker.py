"""Reads mutated files one after the other and prints what came of them as JSON; run by `test_fuzz`.

python fuzz_worker.py SEED COUNT FOLDER
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import time
import traceback
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from format_samples import int8_layer, model_of, put_together, restreamed, small_model, take_apart, vq_layer

from mvq.compressed import CompressedModel
from mvq.errors import FormatError
from mvq.format import open_file, read, to_bytes

SECONDS_A_FILE = 5.0
#: Beyond twice what the data themselves take: parsed tables, and error texts with their tracebacks.
SLACK_BYTES = 1 << 20
NUMBERS = [0, -1, 1, 2, 3, 255, 256, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, 10**18, 1.5, -0.0, 1e300]
VALUES = [
    None,
    True,
    False,
    "",
    "x",
    "vq",
    "int8",
    "dense",
    "1:1",
    "32:32",
    "8:32",
    "float64",
    [],
    {},
    [[]],
    [0],
    [-1, 2],
]


def seeds() -> list[bytes]:
    rng = np.random.default_rng(1)
    shared = [vq_layer(rng, n, (32, 4, 3, 3), "8:32", 32, 40, codebook="network.0") for n in "ab"]
    free = vq_layer(rng, "free", (9, 9, 1, 1), "1:1", 3, 1)
    return [
        to_bytes(small_model()),
        to_bytes(model_of(rng, [*shared, free])),
        to_bytes(model_of(rng, [int8_layer(rng, "s", (3, 3)), vq_layer(rng, "v", (20, 7), "4:16", 16, 9)])),
        to_bytes(model_of(rng, [], {"t": np.arange(20.0)})),
    ]


def sites(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place of a JSON value, as container and key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        found.append((value, key))
        sites(item, found)
    return found


def mutate_value(rng: random.Random, root: Any) -> None:
    """Change one place of a JSON value."""
    places = sites(root, [])
    if not places:
        return
    at, key = rng.choice(places)
    old = at[key]
    action = rng.randrange(7)
    if action == 0 and isinstance(old, int | float) and not isinstance(old, bool):
        at[key] = old + rng.choice([-1, 1, 2, 8, 1000])
    elif action == 1:
        del at[key]
    elif action == 2 and isinstance(at, list):
        at.insert(key, json.loads(json.dumps(old)))
    elif action == 3 and isinstance(old, list):
        rng.shuffle(old)
    elif action == 4:
        other, other_key = rng.choice(places)
        at[key] = json.loads(json.dumps(other[other_key])) if other_key in other or isinstance(other, list) else 0
    elif action == 5:
        at[key] = json.loads(json.dumps(rng.choice(VALUES)))
    else:
        at[key] = rng.choice(NUMBERS)


def mutate_text(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    insert = rng.choice(
        ['"', "{", "[" * rng.choice([1, 5000]), "NaN", "1e999", "9" * 5000, "\\u0000", ",", "\x00", "-"]
    )
    return text[:at] + insert + text[at + rng.randrange(3) :]


def mutate(rng: random.Random, files: list[bytes]) -> bytes:
    data = rng.choice(files)
    how = rng.randrange(10)
    if how < 4:
        # A header that its digest agrees with, so that what is behind it is reached.
        table, header, streams = take_apart(data)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            mutate_value(rng, header)
        return put_together(table, header, streams)
    if how == 4:
        table, header, streams = take_apart(data)
        return put_together(table, mutate_text(rng, json.dumps(header)), streams)
    if how == 5:
        table, header, streams = take_apart(data)
        mutate_value(rng, table)
        raw = json.dumps(table).encode()
        return len(raw).to_bytes(8, "little") + raw + b"".join(streams.values())
    if how == 6:
        name = rng.choice(sorted(take_apart(data)[2]))
        return restreamed(data, name, lambda stream: stream.__setitem__(rng.randrange(len(stream)), rng.randrange(256)))
    if how == 7:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 20])):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if how == 8:
        return data[: rng.randrange(len(data))] + rng.choice([b"", bytes(rng.randrange(40))])
    other = rng.choice(files)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def n_bytes(model: CompressedModel) -> int:
    """What the arrays of a model take."""
    arrays: list[Any] = [*model.tensors.values(), *(codebook.codes for codebook in model.codebooks.values())]
    for layer in model.layers:
        arrays += [value for value in vars(layer).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays)


def _alarm(*_: object) -> None:
    raise TimeoutError(f"no answer within {SECONDS_A_FILE} s")


def try_file(path: Path, data: bytes, lazily: bool) -> tuple[str, int, int]:
    """Outcome, peak of memory while reading, and what the data honestly need."""
    path.write_bytes(data)
    need = len(data)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_REAL, SECONDS_A_FILE)
    try:
        if lazily:
            with open_file(path) as file:
                for entry in file.layers:
                    if entry.n_weights < 1 << 16:
                        file.dense_weight(entry.name)
                    need = max(need, len(data) + 4 * min(entry.n_weights, 1 << 16) + 4 * entry.d * 64)
                    file.layer(entry.name)
                    need += 6 * entry.n_sub * (1 + entry.n_blocks) if entry.storage == "vq" else 0
        else:
            need += n_bytes(read(path))
        outcome = "read"
    except FormatError as error:
        outcome = type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return outcome, tracemalloc.get_traced_memory()[1] - before, need


def main(seed: int, count: int, folder: Path) -> None:
    signal.signal(signal.SIGALRM, _alarm)
    files, rng, path = seeds(), random.Random(seed), folder / "fuzz.mvq"
    for data in files:  # compiles the kernels, outside the measurements
        path.write_bytes(data)
        with open_file(path) as file:
            file.dense_weights()
        read(path)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    slowest = worst = 0.0
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    for i in range(count):
        data = mutate(rng, files)
        start = time.perf_counter()
        try:
            outcome, peak, need = try_file(path, data, lazily=i % 4 == 0)
        except BaseException:
            (folder / f"failure-{len(failures)}.mvq").write_bytes(data)
            failures.append(f"file {i}: {traceback.format_exc()}")
            continue
        outcomes[outcome] += 1
        slowest = max(slowest, time.perf_counter() - start)
        worst = max(worst, peak - 2 * need)
        if peak > 2 * need + SLACK_BYTES:
            failures.append(f"file {i}: {outcome} took {peak} bytes where {need} are needed")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
    report = {
        "outcomes": outcomes,
        "failures": failures[:5],
        "slowest_s": slowest,
        "worst_bytes": worst,
        "grown_kib": grown,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
