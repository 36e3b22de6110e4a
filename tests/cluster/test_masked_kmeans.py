"""Masked k-means: hand-computed cases, laws, agreement of the engines with the reference, errors."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq.cluster import assign, masked_kmeans, reference
from mvq.cluster.device import DeviceEngine
from mvq.cluster.lloyd import make_engine, run, update
from mvq.errors import ConfigError, ShapeError, WeightError
from mvq.grouping import pack_lanes
from mvq.patterns import Pattern


def problem(n, pattern="4:16", d=16, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n, d)).astype(np.float32)
    return w, Pattern.parse(pattern).top_mask(np.abs(w))


@st.composite
def problems(draw):
    """Data of any pattern, also irregular masks, with or without importance weights."""
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    keep, group = draw(st.sampled_from([(4, 16), (1, 2), (2, 4), (1, 1), (3, 8), (5, 20), (9, 32), (1, 4)]))
    d = group * draw(st.sampled_from([1, 2])) if group < 32 else group
    n = draw(st.sampled_from([1, 2, 15, 16, 17, 33, 200, 1000]))
    w = rng.standard_normal((n, d)).astype(np.float32)
    mask = Pattern(keep, group).top_mask(np.abs(w))
    if draw(st.booleans()):
        mask &= rng.random((n, d)) < 0.8
    weights = rng.random((n, d)).astype(np.float32) if draw(st.booleans()) else None
    if weights is not None and draw(st.booleans()):
        weights[rng.random((n, d)) < 0.2] = 0
    n_codewords = draw(st.sampled_from([1, 2, 3, 31, 64, 65, 130]))
    codebook = rng.standard_normal((n_codewords, d)).astype(np.float32)
    return w, mask, weights, codebook


def test_update_golden_vectors_of_the_paper():
    w = np.array([[0.7, 0.7, 0, 0], [0, 0.5, 0.5, 0.5]], np.float32)
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
    result = masked_kmeans(w, mask, 1)
    np.testing.assert_allclose(result.codebook, [[0.7, 0.6, 0.5, 0.5]], rtol=1e-6)
    assert result.sse == pytest.approx(2 * 0.1**2, rel=1e-5)


def test_two_obvious_clusters():
    w = np.array([[1, 0, 1.2, 0], [0, 1, 0, 1], [-1, 0, -1, 0], [0, -1, 0, -1.4]], np.float32)
    result = masked_kmeans(w, w != 0, 2, n_init=8)
    assert result.sse == pytest.approx(0, abs=1e-6)
    # Rows 0 and 2 contradict each other, as do 1 and 3; disjoint rows may share a codeword
    assert result.assignments[0] != result.assignments[2]
    assert result.assignments[1] != result.assignments[3]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_assignment_equals_reference(case):
    w, mask, weights, codebook = case
    labels, distances = assign(w, mask, codebook, weights=weights)
    table = reference.distances(w, mask, codebook, weights)
    chosen = table[np.arange(len(w)), labels]
    # float32 may swap codewords whose distances agree to rounding
    np.testing.assert_allclose(chosen, table.min(axis=1), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(distances, chosen, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_pruned_search_equals_full_search_over_iterations(case):
    """From the second assignment on, candidates are cut by bounds; nothing nearer may be lost."""
    w, mask, weights, codebook = case
    engine = make_engine(np.where(mask, w, 0).astype(np.float32), mask, weights, len(codebook))
    for _ in range(4):
        engine.assign(codebook)
        labels, _ = engine.labels_and_distances()
        table = reference.distances(w, mask, codebook, weights)
        np.testing.assert_allclose(table[np.arange(len(w)), labels], table.min(axis=1), rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(engine.members, np.bincount(labels, minlength=len(codebook)))
        importance = mask * (1.0 if weights is None else weights)
        sums, counts = np.zeros(codebook.shape), np.zeros(codebook.shape)
        np.add.at(sums, labels, importance * np.where(mask, w, 0))
        np.add.at(counts, labels, importance)
        np.testing.assert_allclose(engine.sums, sums, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(engine.counts, counts, rtol=1e-6, atol=1e-6)
        assert engine.sse == pytest.approx(table.min(axis=1).sum(), rel=1e-5, abs=1e-4)
        codebook = update(engine, codebook)


@pytest.mark.parametrize("n_members", [1, 7, 15, 16, 17, 31, 32, 33, 5000])
def test_lloyd_equals_reference(n_members):
    w, mask = problem(n_members, seed=n_members)
    k = min(n_members, 24)
    init = w[:k] * mask[:k]
    _, labels, sse = reference.lloyd(w, mask, init, 12)
    result = masked_kmeans(w, mask, k, init=init, max_iters=12, tol=0)
    if (np.bincount(labels, minlength=k) > 0).all():
        assert result.sse == pytest.approx(sse, rel=1e-4, abs=1e-6)


def test_large_group_is_split_and_still_exact():
    w, mask = problem(40_000, "1:1", d=4)
    codebook = w[:100]
    labels, _ = assign(w, mask, codebook)
    np.testing.assert_array_equal(labels, reference.assign(w, mask, codebook)[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("codewords", ["masked", "packed"])
def test_device_engine_agrees(weighted, codewords):
    w, mask = problem(3000, "2:4", d=8)
    weights = np.random.default_rng(1).random(w.shape).astype(np.float32) if weighted else None
    if codewords == "packed":
        values, slots = pack_lanes(w, mask, 4), np.ones((3000, 4), bool)
        weights = None if weights is None else pack_lanes(weights, mask, 4)
    else:
        values, slots = np.where(mask, w, 0), mask
    engine = DeviceEngine(values, slots, weights, 32, "cpu")
    rng = np.random.default_rng(2)
    start = values[rng.choice(3000, 32, replace=False)].astype(np.float32)
    ours = make_engine(values.astype(np.float32), slots, weights, 32)
    a, _ = run(engine, start, range(20), tol=0)
    b, _ = run(ours, start, range(20), tol=0)
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert engine.sse == pytest.approx(ours.sse, rel=1e-4)
    assert (engine.labels_and_distances()[0] == ours.labels_and_distances()[0]).mean() > 0.999


@pytest.mark.gpu
def test_cuda_tensors_are_clustered_on_their_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    w, mask = problem(20_000)
    init = w[:256] * mask[:256]
    cpu = masked_kmeans(w, mask, 256, init=init, max_iters=10, tol=0)
    gpu = masked_kmeans(torch.from_numpy(w).cuda(), torch.from_numpy(mask).cuda(), 256, init=init, max_iters=10, tol=0)
    assert gpu.codebook.is_cuda
    assert gpu.sse == pytest.approx(cpu.sse, rel=1e-3)


def test_labels_are_nearest_in_the_returned_codebook():
    w, mask = problem(2000)
    for kind in ("masked", "packed"):
        result = masked_kmeans(w, mask, 40, codewords=kind, max_iters=7)
        labels, distances = assign(w, mask, result.codebook, codewords=kind)
        np.testing.assert_array_equal(labels, result.assignments)
        assert result.sse == pytest.approx(distances.sum(dtype=np.float64), rel=1e-4)


def test_full_mask_is_plain_kmeans():
    from sklearn.cluster import KMeans

    w, _ = problem(3000, d=8, pattern="1:1")
    init = w[:20]
    theirs = KMeans(20, init=init, n_init=1, max_iter=300, tol=0).fit(w)
    ours = masked_kmeans(w, np.ones_like(w, bool), 20, init=init, tol=0, max_iters=300)
    assert ours.sse == pytest.approx(theirs.inertia_, rel=1e-4)


def test_duplicated_rows_are_doubled_weights():
    w, mask = problem(400)
    init = w[:16] * mask[:16]
    weights = np.ones_like(w)
    weights[:200] = 2
    twice = masked_kmeans(np.concatenate([w, w[:200]]), np.concatenate([mask, mask[:200]]), 16, init=init, tol=0)
    weighted = masked_kmeans(w, mask, 16, init=init, weights=weights, tol=0)
    assert weighted.sse == pytest.approx(twice.sse, rel=1e-5)
    np.testing.assert_allclose(weighted.codebook, twice.codebook, atol=1e-5)


def test_masked_out_values_never_matter():
    w, mask = problem(500)
    noise = np.where(mask, w, np.float32(np.nan))
    for kind in ("masked", "packed"):
        a = masked_kmeans(w, mask, 30, codewords=kind)
        b = masked_kmeans(noise, mask, 30, codewords=kind)
        np.testing.assert_array_equal(a.codebook, b.codebook)
        np.testing.assert_array_equal(a.assignments, b.assignments)


def test_refit_from_the_optimum_is_a_fixed_point():
    w, mask = problem(1000)
    first = masked_kmeans(w, mask, 25, tol=0, max_iters=500)
    again = masked_kmeans(w, mask, 25, init=first.codebook, tol=0)
    assert again.n_iters == 1
    np.testing.assert_array_equal(again.assignments, first.assignments)
    np.testing.assert_allclose(again.codebook, first.codebook, atol=1e-6)


def test_error_never_rises():
    w, mask = problem(3000)
    previous = np.inf
    init = w[:64] * mask[:64]
    for n_iters in range(1, 12):
        sse = masked_kmeans(w, mask, 64, init=init, max_iters=n_iters, tol=0).sse
        assert sse <= previous * (1 + 1e-6)
        previous = sse


def test_packed_codewords_have_lower_error_than_masked():
    w, mask = problem(20_000)
    masked = masked_kmeans(w, mask, 256, max_iters=30)
    packed = masked_kmeans(w, mask, 256, codewords="packed", max_iters=30)
    assert packed.codebook.shape == (256, 4)
    assert packed.sse < 0.95 * masked.sse


def test_rows_with_fewer_kept_lanes_use_their_first_slots():
    w = np.array([[1, 2, 3, 0], [1, 2, 0, 0], [0, 0, 5, 0]], np.float32)
    result = masked_kmeans(w, w != 0, 2, codewords="packed", n_init=5)
    assert result.codebook.shape == (2, 3)
    assert result.sse == pytest.approx(0, abs=1e-9)


def test_restarts_keep_the_best():
    w, mask = problem(1500)
    errors = [masked_kmeans(w, mask, 20, n_init=n, seed=3).sse for n in (1, 2, 6)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[0] > errors[2]


def test_plus_plus_start_is_no_worse_on_separated_clusters():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 8)) * 10
    w = (centres[rng.integers(40, size=4000)] + 0.01 * rng.standard_normal((4000, 8))).astype(np.float32)
    mask = np.ones_like(w, bool)
    random = masked_kmeans(w, mask, 40, init="random", max_iters=1)
    spread = masked_kmeans(w, mask, 40, init="k-means++", max_iters=1)
    assert spread.sse < 0.5 * random.sse


def test_empty_clusters_move_to_the_worst_served():
    w, mask = problem(1000)
    init = np.full((32, 16), 100.0, np.float32)
    init[0] = 0
    result = masked_kmeans(w, mask, 32, init=init, tol=0, max_iters=300)
    assert (np.bincount(result.assignments, minlength=32) > 0).all()
    assert result.sse < 0.5 * reference.assign(w, mask, init)[1].sum()


def test_lane_that_no_member_keeps_holds_its_value():
    w = np.array([[1, 1, 0, 0], [2, 2, 0, 0], [0, 0, 1, 1]], np.float32)
    init = np.array([[1.5, 1.5, 7, 7], [9, 9, 1, 1]], np.float32)
    result = masked_kmeans(w, w != 0, 2, init=init, tol=0)
    np.testing.assert_allclose(result.codebook, init)


@pytest.mark.parametrize("codewords", ["masked", "packed"])
def test_result_does_not_depend_on_threads(codewords, set_threads):
    w, mask = problem(30_000)
    results = []
    for threads in {1, min(2, numba.config.NUMBA_NUM_THREADS), numba.config.NUMBA_NUM_THREADS}:
        set_threads(threads)
        results.append(masked_kmeans(w, mask, 128, codewords=codewords, max_iters=10))
    for other in results[1:]:
        assert results[0].codebook.tobytes() == other.codebook.tobytes()
        assert results[0].assignments.tobytes() == other.assignments.tobytes()
        assert results[0].sse == other.sse


def test_same_seed_same_result_other_seed_other_result():
    w, mask = problem(2000)
    a, b, c = (masked_kmeans(w, mask, 50, seed=s, max_iters=3) for s in (5, 5, 6))
    assert a.codebook.tobytes() == b.codebook.tobytes()
    assert a.codebook.tobytes() != c.codebook.tobytes()


def test_tensors_in_tensors_out():
    w, mask = problem(300)
    result = masked_kmeans(torch.from_numpy(w), torch.from_numpy(mask), 10)
    plain = masked_kmeans(w, mask, 10)
    assert isinstance(result.codebook, torch.Tensor)
    assert isinstance(result.assignments, torch.Tensor)
    np.testing.assert_array_equal(result.codebook.numpy(), plain.codebook)
    codebook, assignments, sse, n_iters = result
    assert codebook.shape == (10, 16)
    assert assignments.shape == (300,)
    assert sse > 0
    assert n_iters >= 1


def test_half_precision_tensors_are_accepted():
    w, mask = problem(300)
    result = masked_kmeans(torch.from_numpy(w).bfloat16(), torch.from_numpy(mask), 10)
    assert result.codebook.dtype == torch.float32


W, M = problem(10)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (
            (W[0], M[0], 2),
            {},
            ShapeError,
            "masked_kmeans: subvectors are float32 (16,); expected floating point (n_sub, d), not empty",
        ),
        (
            (W.astype(int), M, 2),
            {},
            ShapeError,
            "masked_kmeans: subvectors are int64 (10, 16); expected floating point (n_sub, d), not empty",
        ),
        (
            (W, M[:5], 2),
            {},
            ShapeError,
            "masked_kmeans: mask is bool (5, 16); expected bool (10, 16) like the subvectors",
        ),
        (
            (W, M.astype(float), 2),
            {},
            ShapeError,
            "masked_kmeans: mask is float64 (10, 16); expected bool (10, 16) like the subvectors",
        ),
        (
            (W * np.float32(np.inf), M, 2),
            {},
            WeightError,
            "masked_kmeans: 40 of the kept values are NaN or infinite; all must be finite",
        ),
        (
            (W, M, 2),
            {"weights": np.ones((3, 3))},
            ShapeError,
            "masked_kmeans: weights have shape (3, 3); expected (10, 16) like the subvectors",
        ),
        (
            (W, M, 2),
            {"weights": -np.ones((10, 16))},
            WeightError,
            "masked_kmeans: importance weights must be finite and not negative",
        ),
        ((W, M, 0), {}, ConfigError, "masked_kmeans: n_codewords=0 is not a whole number of at least 1"),
        ((W, M, 2.0), {}, ConfigError, "masked_kmeans: n_codewords=2.0 is not a whole number of at least 1"),
        (
            (W, M, 11),
            {},
            ConfigError,
            "masked_kmeans: 11 codewords for 10 subvectors of which 10 are distinct; use at most 10 codewords",
        ),
        (
            (W[[0] * 10], M[[0] * 10], 3),
            {},
            ConfigError,
            "masked_kmeans: 3 codewords for 10 subvectors of which 1 are distinct; use at most 1 codewords",
        ),
        ((W, M, 2), {"max_iters": 0}, ConfigError, "masked_kmeans: max_iters=0 is not a whole number of at least 1"),
        ((W, M, 2), {"n_init": -1}, ConfigError, "masked_kmeans: n_init=-1 is not a whole number of at least 1"),
        ((W, M, 2), {"tol": 2}, ConfigError, "masked_kmeans: tol=2 is not in 0..1; it is a share of assignments"),
        (
            (W, M, 2),
            {"init": "best"},
            ConfigError,
            "masked_kmeans: init='best' is not 'random', 'k-means++' or an initial codebook",
        ),
        (
            (W, M, 2),
            {"init": W[:3]},
            ShapeError,
            "masked_kmeans: codebook of shape (3, 16), expected (2, 16)",
        ),
        (
            (W, M, 2),
            {"init": W[:2] * np.float32(np.nan)},
            WeightError,
            "masked_kmeans: the codebook holds NaN or infinite values; all must be finite",
        ),
        (
            (W, M, 2),
            {"codewords": "dense"},
            ConfigError,
            "masked_kmeans: codewords='dense' is not 'masked' or 'packed'",
        ),
    ],
)
def test_bad_input(args, kwargs, error, text):
    with pytest.raises(error) as caught:
        masked_kmeans(*args, **kwargs)
    assert str(caught.value) == text


def test_torch_keeps_its_number_of_threads(set_threads):
    """numba's parallel loops share OpenMP with torch; a process told to use one thread has to go on with one."""
    own = numba.config.NUMBA_NUM_THREADS
    values = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    set_threads(own, of_torch=1)
    result = masked_kmeans(values, torch.ones(300, 16, dtype=torch.bool), 4)
    assign(values, torch.ones(300, 16, dtype=torch.bool), result.codebook)
    assert torch.get_num_threads() == 1
    assert numba.get_num_threads() == own
