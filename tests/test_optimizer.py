"""The contract with PyTorch: schedulers, closures, hooks, groups, state dicts, scalers, copies."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, MatrixView, Muon, explain, param_groups
from orthon.algorithms import RULES, Batch, Elementwise, Rule


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Embedding(11, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 8), nn.Linear(8, 11)]
    return nn.Sequential(*layers).to(dtype)


def backward(model: nn.Module, seed: int) -> Tensor:
    tokens = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(seed))
    loss = nn.functional.cross_entropy(model(tokens).float(), (7 * tokens + 3) % 11)
    model.zero_grad()
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        backward(model, seed)
        optimizer.step()


def assert_equal_models(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_loss_falls() -> None:
    model = small_model()
    optimizer = Dion.for_model(model, lr=0.02)
    first = backward(model, 0)
    train(model, optimizer, range(60))
    assert backward(model, 0) < 0.7 * first


@pytest.mark.parametrize("as_tensor", [False, True])
def test_schedulers_are_read_at_every_step(as_tensor: bool) -> None:
    param = nn.Parameter(torch.zeros(4, 4))
    optimizer = Dion([param], lr=torch.tensor(0.1) if as_tensor else 0.1, weight_decay=0.0, rank_fraction=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0][step])
    for factor in (1.0, 0.5, 0.0):
        before = param.detach().clone()
        param.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step() if factor else None
        assert torch.linalg.matrix_norm(param.detach() - before) == pytest.approx(0.2 * factor, abs=1e-5)


def test_a_tensor_lr_gives_the_update_of_a_number() -> None:
    results = []
    for lr in (0.03, torch.tensor(0.03), torch.tensor([0.03])):
        model = small_model()
        train(model, Dion.for_model(model, lr=lr), range(3))
        results.append(model)
    for other in results[1:]:
        for p, q in zip(results[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_closures_and_hooks() -> None:
    model, calls = small_model(), []
    optimizer = Dion.for_model(model)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append("closure")
        return backward(model, 0)

    loss = optimizer.step(closure)
    assert loss == backward(small_model(), 0)
    assert calls == ["before", "closure", "after"]


def test_groups_can_be_added_later() -> None:
    model = small_model()
    names = dict(model.named_parameters())
    optimizer = Dion([("1.weight", names["1.weight"])])
    optimizer.add_param_group({"params": [("4.weight", names["4.weight"])], "lr": 0.5, "rank_fraction": 1.0})
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": [("1.bias", names["1.bias"])], "algorithm": "adamw"})
    train(model, optimizer, range(2))
    assert [len(optimizer.state[names[n]]) for n in ("1.weight", "4.weight", "1.bias")] == [2, 2, 3]
    assert optimizer.state[names["4.weight"]]["Q"].shape == (12, 8)
    assert "betas" not in optimizer.param_groups[0]
    assert "rank_fraction" not in optimizer.param_groups[2]


def test_parameters_without_gradients_are_skipped() -> None:
    model = small_model()
    optimizer = Dion.for_model(model)
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="Dion: no parameter has a gradient"):
        optimizer.step()
    optimizer.step()  # which warns no more
    assert_equal_models(model, before)
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": torch.float32}, {"rank_fraction": 1.0, "adjust_lr_fn": "none"}]
)
def test_a_loaded_state_continues_to_the_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = small_model(dtype)
    optimizer = Dion.for_model(model, **options)
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(4, 8))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = small_model(dtype)
    loaded = Dion.for_model(other, lr=1.0, **options)
    other.load_state_dict(saved["model"])
    loaded.load_state_dict(state_dict=saved["optimizer"])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert loaded.state[q][key].dtype == value.dtype, key
    train(other, loaded, range(4, 8))
    assert_equal_models(model, other)


def test_loading_copies() -> None:
    model = small_model()
    optimizer = Dion.for_model(model)
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other = small_model()
    loaded = Dion.for_model(other)
    loaded.load_state_dict(saved)
    train(other, loaded, range(3))
    for i, state in kept["state"].items():
        for key, value in state.items():
            assert torch.equal(saved["state"][i][key], value), (i, key)


def test_the_step_that_makes_state_for_checkpoints() -> None:
    """torch.distributed.checkpoint makes one step with zero gradients and lr 0, which must change no weight."""
    model = small_model()
    before = copy.deepcopy(model)
    optimizer = Dion.for_model(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
    optimizer.step()
    assert_equal_models(model, before)
    assert all(value.isfinite().all() for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_continue_alike(how: str) -> None:
    model = small_model()
    optimizer = Dion.for_model(model, nonfinite="skip")
    train(model, optimizer, range(3))
    pair = (model, optimizer)
    other, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert copied.nonfinite == "skip"
    train(model, optimizer, range(3, 6))
    train(other, copied, range(3, 6))
    assert_equal_models(model, other)


def test_grad_scaler_skips_steps_with_infinities() -> None:
    model = small_model()
    optimizer = Dion.for_model(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    expected = small_model()
    plain = Dion.for_model(expected)
    for seed in range(4):
        tokens = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(tokens), (7 * tokens + 3) % 11)).backward()
        if seed == 2:
            next(model.parameters()).grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if seed != 2:
            backward(expected, seed)
            plain.step()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_compiled_model_trains_as_the_plain_one() -> None:
    plain, wrapped = small_model(), small_model()
    compiled = torch.compile(wrapped, backend="eager")
    optimizers = Dion.for_model(plain), Dion.for_model(compiled)
    for seed in range(3):
        backward(plain, seed)
        backward(compiled, seed)
        for optimizer in optimizers:
            optimizer.step()
    assert_equal_models(plain, wrapped)
    names = [[n for g in optimizer.param_groups for n in g["param_names"]] for optimizer in optimizers]
    assert names[0] == names[1]


def test_a_step_leaves_the_global_random_state_untouched() -> None:
    model = small_model()
    optimizer = Dion.for_model(model)
    backward(model, 0)
    before = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_start_of_Q_depends_on_seed_and_name_alone() -> None:
    def first_Q(pairs: list[tuple[str, nn.Parameter]], **options: Any) -> dict[str, Tensor]:
        optimizer = Dion(pairs, **options)
        for _, p in pairs:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        return {name: optimizer.state[p]["Q"] for name, p in pairs}

    def pairs() -> list[tuple[str, nn.Parameter]]:
        return [(name, nn.Parameter(torch.randn(6, 8))) for name in ("a", "b")]

    Q, swapped, other = first_Q(pairs()), first_Q(pairs()[::-1]), first_Q(pairs(), seed=1)
    wrapped = first_Q([("_orig_mod.a", nn.Parameter(torch.randn(6, 8)))])
    assert torch.equal(Q["a"], swapped["a"])
    assert torch.equal(Q["a"], wrapped["_orig_mod.a"])
    assert not torch.equal(Q["a"], Q["b"])
    assert not torch.equal(Q["a"], other["a"])


def test_a_new_rule_needs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule is data: once it is known, groups, state, steps, state dicts and explanations serve it."""

    def sign_descent(batch: Batch) -> None:
        batch.descend([G.sign() for G in batch.G])

    monkeypatch.setitem(RULES, "sign", Rule("sign", sign_descent, {}, Elementwise(), {}))
    model = small_model()
    optimizer = Dion(param_groups(model, scalar_algorithm="sign"))
    train(model, optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())


def test_a_group_that_cannot_be_used_hides_no_change_of_another() -> None:
    def gradients(to: list[nn.Parameter]) -> None:
        for p in to:
            p.grad = torch.arange(48.0).view(8, 6).cos()

    params, expected = ([nn.Parameter(torch.ones(8, 6)) for _ in range(2)] for _ in range(2))
    optimizer = Muon([{"params": [p]} for p in params])
    explain(optimizer)  # which looks at all groups
    first, second = optimizer.param_groups
    first["view"], second["view"] = MatrixView(blocks=2), MatrixView(blocks=5)
    gradients(params)
    with pytest.raises(ValueError, match="5"):
        optimizer.step()
    second["view"] = None
    optimizer.step()
    gradients(expected)
    Muon([{"params": [expected[0]], "view": MatrixView(blocks=2)}, {"params": [expected[1]]}]).step()
    assert all(map(torch.equal, params, expected))
