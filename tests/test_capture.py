"""Whole steps in a CUDA graph: replays are steps, with the gradients, lr and weight decay that lie in memory then."""

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, MixedOptimizer
from orthon.algorithms import RULES
from orthon.testing.invariants import accelerated
from tests.support.capture import Graph, HostReadError

# For each rule the options that lead other ways.
CASES: dict[str, dict[str, Any]] = {
    "dion": {},
    "dion, full rank": {"rank_fraction": 1.0, "power_iterations": 2},
    "dion, of the paper": Dion.PAPER,
    "dion, long side": {**Dion.PAPER, "orthonormal_side": "long", "right_factor": "orthonormalize"},
    "dion, polar": {**Dion.PAPER, "right_factor": "polar"},
    "dion, polar beside a tail": {"right_factor": "polar"},
    "dion, tail and feedback": {"tail": 0.7, "rank_fraction": 0.5, "residual_momentum": 0.9, "nesterov": False},
    "muon": {},
    "muon, ema": {"ema": True, "nesterov": False, "polar": "newton_schulz"},
    "normuon": {},
    "dion2": {},
    "dion2, local": {"selection": "local"},
    "dion2, random": {"selection": "random"},
    "dion3": {},
    "dion3, random": {"selection": "random", "fraction": 0.5},
    "adamw": {},
    "adamw, amsgrad": {"amsgrad": True},
    "lion": {},
}
CONVOLUTION = {"kind": "convolution"}
# Shapes of parameters, each with its view.
Shape = tuple[tuple[int, ...], dict[str, Any] | None]
SHAPES: list[Shape] = [
    ((6, 9), None),
    ((9, 6), None),
    ((6, 9), None),
    ((5, 5), None),
    ((12, 4), {"blocks": 3}),
    ((11, 6), {"blocks": (2, 5, 4)}),
    ((2, 4, 7), {}),
    ((6, 3, 2, 2), CONVOLUTION),
]


def optimizer_of(
    case: str, dtype: torch.dtype, *, device: str = "cpu", shapes: Sequence[Shape] = SHAPES, **options: Any
) -> tuple[list[nn.Parameter], MixedOptimizer]:
    """Return parameters, the last one in channels_last, and their optimizer."""
    rule, generator = RULES[case.partition(",")[0]], torch.Generator().manual_seed(0)
    rates = {"lr": torch.zeros((), device=device), "weight_decay": torch.zeros(1, device=device)}
    options = {**rates, "capturable": True, **options}
    if "polar_dtype" in rule.options:
        options["polar_dtype"] = dtype  # whatever the CPU
    groups = []
    for shape, view in shapes:
        param = torch.randn(shape, generator=generator).to(device, dtype)
        if len(shape) == 4:
            param = param.to(memory_format=torch.channels_last)
        group = {"params": [nn.Parameter(param)], **CASES[case]}
        if rule.work.takes_matrices and view is not None:
            group["view"] = view
        # Parameters with one view are one group, and those of one shape one batch.
        same = [other for other in groups if other.get("view") == group.get("view")]
        same[0]["params"].extend(group["params"]) if same else groups.append(group)
    params = [param for group in groups for param in group["params"]]
    return params, MixedOptimizer(groups, algorithm=rule.name, options=options, nonfinite="skip")


def write_gradients(params: list[nn.Parameter], step: int, *, scale: float = 1.0, bad: bool = False) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        gradient = torch.randn(param.shape, generator=generator) * scale
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.copy_(gradient)
    if bad:
        assert params[0].grad is not None
        params[0].grad[0] = float("inf")


def set_rates(optimizer: MixedOptimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"].fill_(0.1 / (1 + step))
        group["weight_decay"].fill_(0.05 * (1 + step))


def content(params: list[nn.Parameter], optimizer: MixedOptimizer) -> list[Tensor]:
    state = [value for param in params for value in optimizer.state[param].values()]
    return [value.detach().clone() for value in (*params, *state, torch.tensor(optimizer.skipped_steps))]


def trained(
    made: tuple[list[nn.Parameter], MixedOptimizer],
    *,
    captured: bool,
    take: Callable[[MixedOptimizer], Any] = MixedOptimizer.step,
    scale: float = 1.0,
) -> list[list[Tensor]]:
    """Return weights and state after each of 7 steps, of which one is left out; from the third on by a graph."""
    params, optimizer = made
    graph, results = None, []
    for step in range(7):
        write_gradients(params, step, scale=scale, bad=step == 4)
        set_rates(optimizer, step)
        if graph is not None:
            graph.replay()
        elif captured and step == 2:
            graph = Graph(lambda: take(optimizer))
        else:
            with accelerated():
                take(optimizer)
        results.append(content(params, optimizer))
    return results


def assert_equal(actual: list[list[Tensor]], expected: list[list[Tensor]], case: str) -> None:
    for step, pair in enumerate(zip(actual, expected, strict=True)):
        for place, (a, b) in enumerate(zip(*pair, strict=True)):
            assert torch.equal(a, b), f"{case}: tensor {place} after step {step} is off by {(a - b).abs().max()}"


@pytest.mark.parametrize(("dtype", "cautious"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_replays_are_steps_to_the_bit(case: str, dtype: torch.dtype, cautious: bool) -> None:
    graph, steps = (
        trained(optimizer_of(case, dtype, cautious_weight_decay=cautious), captured=captured)
        for captured in (True, False)
    )
    assert_equal(graph, steps, case)
    assert steps[-1][-1] == 1, "one step should be left out"
    assert not torch.equal(steps[-1][0], steps[-2][0]), "steps should change the weights"


@pytest.mark.parametrize("case", ["dion", "dion, of the paper", "muon", "dion2", "dion3", "adamw"])
def test_replays_of_steps_on_large_matrices(case: str) -> None:
    """Which are updated one by one, and in parts on a CPU."""
    shapes = [((300, 260), None), ((260, 300), None)]
    graph, steps = (
        trained(optimizer_of(case, torch.float32, shapes=shapes), captured=captured) for captured in (True, False)
    )
    assert_equal(graph, steps, case)


@pytest.mark.parametrize("case", CASES)
def test_capturable_steps_are_the_steps_of_others(case: str) -> None:
    """Those with numbers for rates, which are computed in float64, and with counters and decisions on the host."""
    params, optimizer = optimizer_of(case, torch.float32)
    others, plain = optimizer_of(case, torch.float32, lr=0.0, weight_decay=0.0, capturable=False)
    plain.nonfinite = "raise"
    for step in range(4):
        write_gradients(params, step)
        write_gradients(others, step)
        set_rates(optimizer, step)
        for group in plain.param_groups:
            group.update(lr=0.1 / (1 + step), weight_decay=0.05 * (1 + step))
        with accelerated():
            optimizer.step()
            plain.step()
    for place, (a, b) in enumerate(zip(params, others, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=place: f"{case}, parameter {n}: {m}")


@pytest.mark.parametrize("case", ["dion", "muon", "dion2, random", "dion3", "adamw", "lion"])
def test_what_a_scaler_hands_over_is_read_from_its_memory(case: str) -> None:
    def take(optimizer: MixedOptimizer) -> None:
        optimizer.found_inf, optimizer.grad_scale = found_inf, torch.full((1,), 4.0)  # type: ignore[attr-defined]
        optimizer.step()

    results = []
    for captured in (True, False):
        found_inf = torch.zeros(1)
        results.append(trained(optimizer_of(case, torch.float32), captured=captured, take=take, scale=4.0))
        assert results[-1][-1][-1] == 1
    assert_equal(*results, case)
    found_inf.fill_(1)


@pytest.mark.parametrize("case", ["dion", "dion2, random", "adamw"])
def test_a_scaler_can_be_in_the_graph(case: str) -> None:
    results = []
    for captured in (True, False):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        scaler.scale(torch.zeros(()))  # which makes the scale

        def take(optimizer: MixedOptimizer, scaler: torch.amp.GradScaler = scaler) -> None:
            scaler.step(optimizer)
            scaler.update()

        results.append(trained(optimizer_of(case, torch.float32), captured=captured, take=take, scale=4.0))
        assert results[-1][-1][-1] == 1
        assert scaler.get_scale() == 2.0
    assert_equal(*results, case)


def test_a_training_step_with_a_scheduler_is_captured_as_a_whole() -> None:
    """As in docs/cuda_graphs.md."""
    results = []
    for captured in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 12), nn.Linear(12, 4))
        lr, scalar_lr = torch.tensor(0.02), torch.tensor(3e-4)
        optimizer = Dion.for_model(model, lr=lr, scalar_lr=scalar_lr, nonfinite="skip", capturable=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        x, graph, losses = torch.empty(16, 8), None, []

        def training_step(
            model: nn.Module = model, optimizer: Dion = optimizer, x: Tensor = x, losses: list[Tensor] = losses
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(-1))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

        for step in range(8):
            x.copy_(torch.randn(16, 8, generator=torch.Generator().manual_seed(step)))
            if graph is not None:
                graph.replay()
            elif captured and step == 3:
                graph = Graph(training_step)
            else:
                with accelerated():
                    training_step()
            scheduler.step()
        assert len(losses) == (4 if captured else 8)
        assert scalar_lr < 1e-7
        results.append([p.detach() for p in model.parameters()] + [losses[-1]])
    assert_equal(results[:1], results[1:], "a model")


def captured_with(change: Callable[[list[nn.Parameter], MixedOptimizer], Any]) -> Graph:
    params, optimizer = optimizer_of("dion", torch.float32)
    for step in range(2):
        write_gradients(params, step)
        with accelerated():
            optimizer.step()
    change(params, optimizer)
    return Graph(optimizer.step)


def without_state(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    optimizer.state.clear()


def with_loaded_state(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    """As after `load_state_dict`, state is not in one storage yet."""
    for state in optimizer.state.values():
        state.update({key: value.clone() for key, value in state.items()})


def on_another_device(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    optimizer.param_groups[1]["weight_decay"] = torch.tensor(0.1, device="meta")


def not_capturable(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    optimizer.param_groups[1]["capturable"] = False


def scheduled(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    optimizer.param_groups[1]["lr"] = 0.1
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def raising(params: list[nn.Parameter], optimizer: MixedOptimizer) -> None:
    optimizer.nonfinite = "raise"


REFUSED = [
    (not_capturable, RuntimeError, r"param group 1: step\(\) is captured .*, but capturable is False"),
    (raising, ValueError, "param group 0: capturable should be False with nonfinite='raise'"),
    (on_another_device, ValueError, "weight_decay should be a tensor on cpu, .* but is a tensor on meta"),
    (scheduled, ValueError, "param group 1: lr should be a tensor on cpu, as a scheduler changes it, .* but is 0.1"),
    (without_state, RuntimeError, "has no state yet, .* take a step like the captured one before"),
    (with_loaded_state, RuntimeError, "the state has moved during the capture"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_a_graph_would_get_wrong_is_refused(
    change: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        captured_with(change)


BAD_OPTIONS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("dion", {"nonfinite": "raise"}, ValueError, "capturable should be False with nonfinite='raise', .*'skip' decides"),
    (
        "muon",
        {"options": {"polar": "svd"}},
        ValueError,
        "capturable should be False with polar='svd', .* are capturable",
    ),
    ("dion", {"options": {"capturable": 1}}, TypeError, "capturable should be True or False, but is 1"),
    ("dion", {"options": {"weight_decay": torch.ones(2)}}, TypeError, "weight_decay should be .* one-element tensor"),
    ("dion", {"options": {"weight_decay": torch.tensor(-1.0)}}, ValueError, "weight_decay should be .* >= 0"),
]


@pytest.mark.parametrize(("rule", "given", "error", "message"), BAD_OPTIONS, ids=[m for *_, m in BAD_OPTIONS])
def test_options_that_do_not_go_together(
    rule: str, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"capturable": True, **given.get("options", {})}
    with pytest.raises(error, match=message):
        MixedOptimizer(
            [nn.Parameter(torch.zeros(3, 4))],
            algorithm=rule,
            options=options,
            nonfinite=given.get("nonfinite", "skip"),
        )


@pytest.mark.parametrize("saved_as", [True, False])
@pytest.mark.parametrize("case", ["dion", "dion2, random", "adamw"])
def test_a_state_goes_on_with_the_other_switch(case: str, saved_as: bool) -> None:
    params, optimizer = optimizer_of(case, torch.float32, capturable=saved_as)
    rates = optimizer.param_groups[0]["lr"]
    for step in range(2):
        write_gradients(params, step)
        set_rates(optimizer, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others, loaded = optimizer_of(case, torch.float32, capturable=not saved_as)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert all(group["capturable"] is not saved_as for group in loaded.param_groups)
    for mine, other in zip(params, others, strict=True):
        other.data.copy_(mine)
    for step in range(2, 4):
        for weights, each in ((params, optimizer), (others, loaded)):
            write_gradients(weights, step)
            set_rates(each, step)
            each.step()
    assert_equal([content(others, loaded)], [content(params, optimizer)], case)
    assert optimizer.param_groups[0]["lr"] is rates


def test_a_loaded_rate_is_no_part_of_the_saved_state() -> None:
    _, optimizer = optimizer_of("dion", torch.float32)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    set_rates(optimizer, 0)
    assert saved["param_groups"][0]["lr"] == 0


@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("case", ["dion2, random", "adamw"])
def test_counters_lie_with_the_parameter(case: str, capturable: bool) -> None:
    _, optimizer = optimizer_of(case, torch.float32, capturable=capturable)
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(param.to("meta")) for param in group["params"]]
    for member in optimizer.members():
        assert member.new_state()["step"].device.type == ("meta" if capturable else "cpu"), member.name


@pytest.mark.parametrize("rule", sorted(RULES))
def test_weight_decay_may_be_a_tensor(rule: str) -> None:
    results = []
    for decay in (0.25, torch.tensor(0.25), torch.tensor([0.25])):
        param = nn.Parameter(torch.ones(3, 4))
        optimizer = MixedOptimizer([param], algorithm=rule, options={"lr": 0.5, "weight_decay": decay})
        for step in range(3):
            write_gradients([param], step)
            optimizer.step()
        results.append(param)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# The emulation itself.


def test_the_emulation_repeats_operations_on_the_same_memory() -> None:
    x, y, rate = torch.zeros(3, 4), torch.ones(4), torch.tensor(2.0)

    def step() -> None:
        total = (x.mT @ torch.ones(3)).view(2, 2)  # a result, and a view of it
        y.view(2, 2).add_(total * rate)
        torch.add(x, 1.0, out=x)
        torch._foreach_add_([x[0], x[1]], [y, y])

    expected_x, expected_y = x.clone(), y.clone()
    graph = Graph(step)
    for factor in (2.0, 3.0, 5.0):
        if factor > 2:
            rate.fill_(factor)
            graph.replay()
        expected_y += expected_x.sum(0) * factor
        expected_x += 1
        expected_x[:2] += expected_y
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


def test_the_emulation_does_not_repeat_what_the_host_does() -> None:
    class Counting:
        count, lr = 0, 1.0

    x, kept = torch.zeros(()), {"step": torch.zeros(())}

    def step() -> None:
        Counting.count += 1
        x.add_(Counting.count * Counting.lr)
        kept["step"] = kept["step"] + 1  # a new tensor

    graph = Graph(step)
    Counting.lr = 100.0
    graph.replay()
    graph.replay()
    assert Counting.count == 1
    assert x == 3
    assert kept["step"] == 1


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: x * torch.tensor(2.0),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "svd": lambda x: torch.linalg.svd(x.view(2, 2)),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("what", WAITING)
def test_the_emulation_raises_where_a_graph_would(what: str) -> None:
    with pytest.raises(HostReadError):
        Graph(lambda: WAITING[what](torch.ones(4)))


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_the_emulation_shows_a_step_that_is_not_capturable(lr: float | Tensor) -> None:
    """An lr that is a number stays what it was at the capture, and torch's AdamW counts its steps on the host."""
    param = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([param], lr=lr, foreach=False)
    param.grad = torch.ones(3)
    optimizer.step()
    if isinstance(lr, Tensor):
        with pytest.raises(HostReadError):
            Graph(optimizer.step)
        return
    mine = Dion(
        [{"params": [nn.Parameter(torch.ones(3))], "algorithm": "lion"}], lr=lr, nonfinite="skip", capturable=True
    )
    weight = mine.param_groups[0]["params"][0]
    weight.grad = torch.ones(3)
    mine.step()
    graph = Graph(mine.step)
    mine.param_groups[0]["lr"] = 0.0
    before = weight.detach().clone()
    graph.replay()
    assert not torch.equal(weight, before)
