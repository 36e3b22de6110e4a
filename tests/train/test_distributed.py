"""Two processes train what one trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import ddp_worker
import pytest
import torch

from mvq.errors import DataError
from mvq.train.distributed import World


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes ends with."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, ddp_worker.__file__, str(folder)],
            env={**common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    assert [p.name for p in folder.glob("*.ckpt")] == ["a.ckpt"]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", ddp_worker.KINDS)
def test_two_processes_train_as_one(kind: str, ranks: list[dict]) -> None:
    losses, state = ddp_worker.run_seeded(kind, 0, None)
    assert len(losses) == (9 if kind in ("shuffled", "frozen") else 12)
    for rank in ranks:
        assert rank[kind][0] == ranks[0][kind][0]
        assert rank[kind][0] == pytest.approx(losses, rel=1e-4)
        for name, value in state.items():
            assert torch.equal(rank[kind][1][name], ranks[0][kind][1][name]), name
            # Adam turns the sign of a gradient that is only rounding into a step of its own
            loose = {"atol": 2e-3} if kind == "clustered" else {"atol": 1e-5, "rtol": 1e-4}
            assert torch.allclose(rank[kind][1][name].double(), value.double(), **loose), name
    assert losses[-1] < losses[0]


def test_parts_of_batches() -> None:
    first, last = World(0, 2), World(1, 2)
    images, labels = torch.arange(5.0).reshape(5, 1), torch.arange(5)
    parts = [
        w.part((images, {"y": labels, "names": list("abcde"), "both": [labels, 2 * labels], "k": 3}))
        for w in (first, last)
    ]
    assert [(n_own, n) for _, n_own, n in parts] == [(2, 5), (3, 5)]
    (x, rest), *_ = parts[1]
    assert x.flatten().tolist() == [2, 3, 4]
    assert rest["y"].tolist() == [2, 3, 4]
    assert rest["names"] == ["c", "d", "e"]
    assert [t.tolist() for t in rest["both"]] == [[2, 3, 4], [4, 6, 8]]
    assert rest["k"] == 3
    # Detection: lists of samples, whatever their shapes are
    pictures, boxes = (
        tuple(torch.zeros(3, 4, 4 + i) for i in range(3)),
        tuple({"boxes": torch.ones(i, 4)} for i in range(3)),
    )
    (x, y), n_own, n = last.part((pictures, boxes))
    assert (n_own, n, [len(b["boxes"]) for b in y], [p.shape[2] for p in x]) == (2, 3, [1, 2], [5, 6])
    with pytest.raises(DataError) as caught:
        first.part("text")
    assert str(caught.value) == (
        "a batch of str cannot be divided among processes; yield tensors, or shard in the loader and set its "
        "attribute sharded = True"
    )
