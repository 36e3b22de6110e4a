"""What PyTorch users do with modules has to work on compressed ones."""

import copy
import io

import numpy as np
import pytest
import torch
from small_nets import batch, small_net
from torch import nn

from mvq import Recipe
from mvq.errors import ModelError
from mvq.nn import VQWeight, bake_, cluster_, eligible_layers, extract, install_, prune_, unwrap

RECIPE = Recipe(n_codewords=16)
PACKED = Recipe(n_codewords=16, codewords="packed", scope="network")
X, Y = batch()


@pytest.fixture(params=[RECIPE, PACKED], ids=["masked", "packed-network"])
def model(request) -> nn.Module:
    return cluster_(small_net(), request.param).eval()


def codes(net: nn.Module) -> list[np.ndarray]:
    compressed = extract(net)
    return [c.codes for c in compressed.codebooks.values()] + [
        layer.codes for layer in compressed.layers if hasattr(layer, "codes")
    ]


def same_codes(a: nn.Module, b: nn.Module) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(codes(a), codes(b), strict=True))


def test_state_dict_round_trip_through_torch_save(model) -> None:
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    twin = cluster_(small_net(7), next(m.recipe for m in model.modules() if isinstance(m, VQWeight))).eval()
    twin(X)
    assert not torch.equal(twin(X), model(X))
    twin.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(twin(X), model(X))
    assert same_codes(twin, model)


def test_state_dict_of_a_pruned_model() -> None:
    model, twin = prune_(small_net(), RECIPE).eval(), prune_(small_net(1), RECIPE).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(X), model(X))


@pytest.mark.parametrize(("what", "value", "limit"), [("assignments", 16, 15), ("mask_ids", -1, 1819)])
def test_load_state_dict_checks_ranges(what: str, value: int, limit: int) -> None:
    model = cluster_(small_net(), RECIPE).eval()
    before = model(X)
    state = copy.deepcopy(model.state_dict())
    ids = state[f"hidden.parametrizations.weight.0.{what}"]
    ids[0] = value
    with pytest.raises(ModelError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == (
        f"layer 'hidden': {what} of the state_dict span {ids.min()}..{ids.max()}, must lie in 0..{limit}; "
        f"the state_dict is damaged or of a model with another codebook or pattern"
    )
    assert torch.equal(model(X), before)


def test_double_half_and_bfloat16(model) -> None:
    exact = model(X)
    before = codes(model)
    n_books = len(extract(model).codebooks)
    assert torch.allclose(copy.deepcopy(model).double()(X.double()).float(), exact, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        low = copy.deepcopy(model).to(dtype)
        assert low.hidden.weight.dtype == low.stem.weight.dtype == dtype
        out = low(X.to(dtype))
        assert out.dtype == dtype
        assert torch.allclose(out.float(), exact, atol=0.05)
        # Codebooks stay exact; int8 layers round a float weight that lost digits, so a code may move by one.
        for net in (low, copy.deepcopy(low).float()):
            for i, (a, b) in enumerate(zip(codes(net), before, strict=True)):
                assert np.abs(a.astype(int) - b).max() <= (i >= n_books)
        baked = bake_(copy.deepcopy(model).to(dtype))
        assert baked.hidden.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_are_compressed_in_theirs(dtype) -> None:
    model = cluster_(prune_(small_net().to(dtype), RECIPE), RECIPE).eval()
    assert model.hidden.weight.dtype == dtype
    compressed = extract(model)
    assert compressed.tensors["fc.bias"].dtype == np.float32
    fresh = install_(small_net().to(dtype), compressed).eval()
    assert torch.equal(fresh(X.to(dtype)), model(X.to(dtype)))
    assert same_codes(fresh, model)


def test_train_and_eval_reach_the_parametrizations(model) -> None:
    model.train()
    assert all(m.training for m in model.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


def test_autocast_and_checkpointing(model) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(X).float(), Y)
    loss.backward()
    for module in model.modules():
        if isinstance(module, VQWeight):
            assert module.codebook.values.grad.isfinite().all()
    plain = copy.deepcopy(model)
    for net in (model, plain):
        net.zero_grad()
    nn.functional.cross_entropy(plain(X), Y).backward()
    out = torch.utils.checkpoint.checkpoint(model, X, use_reentrant=False)
    nn.functional.cross_entropy(out, Y).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_reach_values_scale_and_the_rest(model) -> None:
    nn.functional.cross_entropy(model(X), Y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", [RECIPE, PACKED], ids=["masked", "packed-network"])
def test_torch_compile(recipe) -> None:
    torch.manual_seed(0)
    model = cluster_(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 40, 3), nn.Flatten(), nn.Linear(640, 10)), recipe)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    assert unwrap(compiled) is model
    assert same_codes(compiled, model)
    torch._dynamo.reset()


def test_ddp(model, tmp_path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch.distributed is not built in")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model.train())
        optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
        before = extract(wrapped)
        nn.functional.cross_entropy(wrapped(X), Y).backward()
        optimizer.step()
        after = extract(wrapped)
        assert any(not np.array_equal(c.values, after.codebooks[k].values) for k, c in before.codebooks.items())
        assert [n for n, _, _ in eligible_layers(wrapped)] == [n for n, _, _ in eligible_layers(model)]
        plain = nn.parallel.DistributedDataParallel(small_net())
        with pytest.raises(ModelError) as caught:
            cluster_(plain, RECIPE)
        assert str(caught.value) == (
            "cluster_ on a model inside DistributedDataParallel: the codewords are new parameters that the wrapper "
            "would not see; cluster model.module first and wrap it afterwards"
        )
        with pytest.raises(ModelError) as caught:
            install_(plain, before)
        assert str(caught.value) == (
            "install_ on a model inside DistributedDataParallel: the wrapper would not see the new parameters; "
            "install on model.module first and wrap it afterwards"
        )
    finally:
        torch.distributed.destroy_process_group()


def test_pickling_a_whole_module_is_refused_by_torch(model) -> None:
    with pytest.raises(RuntimeError, match="state_dict"):
        torch.save(model, io.BytesIO())


def test_learning_moves_codes_but_neither_assignments_nor_masks(model) -> None:
    before = extract(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    first = None
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        first = first if first is not None else float(loss.detach())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first
    after = extract(model)
    for a, b in zip(before.vq_layers, after.vq_layers, strict=True):
        assert np.array_equal(a.assignments, b.assignments)
        assert np.array_equal(a.mask_ids, b.mask_ids)
    for key, codebook in before.codebooks.items():
        assert not np.array_equal(codebook.codes, after.codebooks[key].codes)
        assert codebook.scale != after.codebooks[key].scale
    for layer in after.vq_layers:
        assert np.array_equal(after.dense_weight(layer), model.get_submodule(layer.name).weight.detach().numpy())


def test_one_adam_step_changes_the_scale_by_the_learning_rate(model) -> None:
    form = next(m for m in model.modules() if isinstance(m, VQWeight))
    before = float(form.codebook.scale().detach())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-20)
    nn.functional.cross_entropy(model(X), Y).backward()
    optimizer.step()
    assert abs(np.log(float(form.codebook.scale().detach()) / before)) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    cpu = cluster_(small_net(), RECIPE).eval()
    moved = copy.deepcopy(cpu).cuda()
    torch.testing.assert_close(moved(X.cuda()).cpu(), cpu(X), atol=1e-4, rtol=1e-3)
    assert same_codes(moved, cpu)
    there = cluster_(prune_(small_net().cuda(), RECIPE), RECIPE)
    nn.functional.cross_entropy(there(X.cuda()), Y.cuda()).backward()
    for a, b in zip(extract(there).vq_layers, extract(cpu).vq_layers, strict=True):
        assert np.array_equal(a.mask_ids, b.mask_ids)
        assert a.masked_sse == pytest.approx(b.masked_sse, rel=0.2)
    assert there.hidden.weight.is_cuda
    assert install_(small_net().cuda(), extract(cpu)).hidden.weight.is_cuda
