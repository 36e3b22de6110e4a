"""Gradients of the compressed weight, with the paper's golden vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.nn.functional import DecodeWeight, FakeQuantChannels, FakeQuantCodebook

MASKS = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)


def test_codeword_gradient_is_the_papers_masked_average() -> None:
    table = torch.zeros(1, 4, requires_grad=True)
    assignments = torch.zeros(2, dtype=torch.int32)
    weight = DecodeWeight.apply(table, assignments, MASKS, MASKS.sum(0, dtype=torch.int32)[None], (4, 2), 4)
    # Column p of the weight is subvector p: gradients (.1,.2,0,0) and (0,-.4,.3,-.1).
    weight.backward(torch.tensor([[0.1, 0], [0.2, -0.4], [0, 0.3], [0, -0.1]]))
    torch.testing.assert_close(table.grad, torch.tensor([[0.1, -0.1, 0.3, -0.1]]))


def test_gradients_on_pruned_lanes_never_arrive() -> None:
    table = torch.zeros(1, 4, requires_grad=True)
    counts = MASKS.sum(0, dtype=torch.int32)[None]
    weight = DecodeWeight.apply(table, torch.zeros(2, dtype=torch.int32), MASKS, counts, (4, 2), 4)
    weight.backward((~MASKS).T.float() * 1e6)
    assert (table.grad == 0).all()


def test_a_codeword_without_members_gets_zero() -> None:
    table = torch.ones(3, 4, requires_grad=True)
    counts = torch.zeros(3, 4, dtype=torch.int32)
    counts[1] = MASKS.sum(0)
    weight = DecodeWeight.apply(table, torch.ones(2, dtype=torch.int32), MASKS, counts, (4, 2), 4)
    weight.sum().backward()
    assert table.grad.tolist() == [[0] * 4, [1, 1, 1, 1], [0] * 4]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 5), st.integers(1, 6), st.sampled_from(["masked", "packed", "dense"]), st.data()
)
def test_decode_matches_a_loop_forward_and_backward(n_out, n_pos, k, kind, data) -> None:
    d, q = 4, 2
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    n_sub = -(-n_out // d) * n_pos
    width = q if kind == "packed" else d
    mask = np.ones((n_sub, d), bool) if kind == "dense" else np.argsort(rng.random((n_sub, d)), axis=1) < q
    values = rng.normal(size=(k, width)).astype(np.float32)
    labels = rng.integers(0, k, n_sub)
    grad = rng.normal(size=(n_out, n_pos)).astype(np.float32)
    expected = np.zeros((n_out, n_pos), np.float32)
    sums, counts = np.zeros((k, width)), np.zeros((k, width), np.int32)
    for j in range(n_sub):
        slot = 0
        for lane in range(d):
            channel = j // n_pos * d + lane
            if mask[j, lane]:
                column = slot if kind == "packed" else lane
                slot += 1
                if channel < n_out:
                    expected[channel, j % n_pos] = values[labels[j], column]
                    sums[labels[j], column] += grad[channel, j % n_pos]
                    counts[labels[j], column] += 1
    lanes = {"masked": mask, "packed": np.nonzero(mask)[1].reshape(n_sub, -1), "dense": None}[kind]
    table = torch.tensor(values, requires_grad=True)
    weight = DecodeWeight.apply(
        table,
        torch.tensor(labels, dtype=torch.int32),
        None if lanes is None else torch.tensor(lanes),
        torch.tensor(counts),
        (n_out, n_pos),
        d,
    )
    assert np.array_equal(weight.detach().numpy(), expected)
    weight.backward(torch.tensor(grad))
    assert table.grad.numpy() == pytest.approx(sums / np.maximum(counts, 1), abs=1e-5)


def test_fake_quant_codebook_is_lsq() -> None:
    values = torch.tensor([[0.26, -0.04], [200.0, -200.0]], requires_grad=True)
    log = torch.tensor(0.0, requires_grad=True)
    out = FakeQuantCodebook.apply(values, torch.tensor(0.1), log)
    torch.testing.assert_close(out, torch.tensor([[0.3, 0.0], [12.7, -12.8]]))
    out.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert values.grad.tolist() == [[1, 2], [0, 0]]
    # 1*(3-2.6) + 2*(0+0.4) + 3*127 - 4*128, times 1/sqrt(4*127)
    assert float(log.grad) == pytest.approx((0.4 + 0.8 + 381 - 512) / (4 * 127) ** 0.5, rel=1e-5)


def test_fake_quant_channels_is_straight_through_in_range() -> None:
    weight = torch.tensor([[0.26, 13.0], [0.26, -1.0]], requires_grad=True)
    out = FakeQuantChannels.apply(weight, torch.tensor([0.1, 0.01]))
    torch.testing.assert_close(out, torch.tensor([[0.3, 12.7], [0.26, -1.0]]))
    out.sum().backward()
    assert weight.grad.tolist() == [[1, 0], [1, 1]]
