"""The memory of a step's temporaries: counted, explained, and bounded by batches."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthon import Dion, Dion2, Dion3, Explanation, MatrixView, Muon, NorMuon, explain
from orthon.explain import BatchRow, WaveRow
from orthon.explain.explained_step import ExplainedStep, most_under_way
from orthon.explain.temporaries import Temporaries
from orthon.explain.units import size
from orthon.sharding import Message
from orthon.step.batches import Wave
from tests.rules_table import PAPER, TAIL
from tests.support.sampling import crossed

FAMILY = (Dion, Muon, NorMuon, Dion2, Dion3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_made_and_gone_is_counted(device: str) -> None:
    x, out = torch.ones(100, device=device), torch.empty(100, device=device)
    with Temporaries() as temporaries:
        y = x + 1  # 400 bytes, until it is kept
        z = y.view(10, 10) * 2  # 400 more
        x.add_(1).mul_(2)
        torch.mul(x, 2, out=out)
        torch._foreach_add_([x], [out])
        del z
        z = torch.cat(torch._foreach_mul([x, x], 3))  # 800 of two, and 800
        del z
        x[:50].copy_(y[50:])
        big = torch.empty(1000, device=device)
        del big  # 4000, alone beside what is kept
    assert temporaries.bytes == 4000
    del y
    assert temporaries.bytes == 4400, "gone after the block"


def stepped(make: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Any:
    """Return an optimizer after two steps, with such small gradients that nothing can be spared."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    optimizer = make(params, **options)
    for _ in range(2):
        for param in params:
            param.grad = (1e-20 * torch.randn(param.shape, generator=generator)).to(dtype)
        optimizer.step()
    return optimizer


def measured(optimizer: Any) -> int:
    with Temporaries() as temporaries:
        optimizer.step()
    return temporaries.bytes


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (Dion, {}),
    *((Dion, {**PAPER, "rank_fraction": fraction}) for fraction in (1 / 16, 1 / 4, 1.0)),
    (Dion, {**PAPER, "right_factor": "orthonormalize"}),
    (Dion, {**PAPER, "right_factor": "polar"}),
    (Dion, TAIL),
    (Dion, {**TAIL, "right_factor": "normalize", "nonfinite": "skip"}),
    (Dion, {**TAIL, "state_dtype": torch.float32, "cautious_weight_decay": True}),
    (Dion, {**PAPER, "tail": 0.7, "product_dtype": torch.float32}),
    (Dion, {**PAPER, "residual_momentum": None}),
    (Dion, {**PAPER, "cautious_weight_decay": True}),
    (Dion, {**PAPER, "nonfinite": "skip"}),
    (Dion, {**PAPER, "product_dtype": torch.bfloat16}),
    (Dion, {**PAPER, "product_dtype": torch.float32}),
    (Dion, {"algorithm": "lion"}),
    (Dion, {"algorithm": "adamw"}),
    (Muon, {}),
    (Muon, {"polar_dtype": torch.bfloat16}),
    (Muon, {"nonfinite": "skip"}),
    (NorMuon, {"polar_dtype": torch.float32}),
    (Dion2, {}),
    (Dion2, {"selection": "random"}),
    (Dion2, {"cautious_weight_decay": True}),
    (Dion3, {}),
]


def made(make: Any, options: dict[str, Any]) -> Any:
    """Return a class of optimizers; with an algorithm, one for all of the parameters."""
    if "algorithm" not in options:
        return lambda params: make(params, **options)
    return lambda params: make([{"params": params, **options}])


@pytest.mark.parametrize(
    ("make", "options", "shape", "dtype"),
    crossed(KINDS, [(256, 256), (192, 384), (384, 192)], [torch.float32, torch.bfloat16], every=3),
)
def test_explain_tells_what_a_step_on_a_cpu_takes(
    make: Any, options: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    optimizer = stepped(made(make, options), [shape] * 3, dtype)
    found, told = measured(optimizer), explain(optimizer).temporary_bytes
    batch = 3 * math.prod(shape) * dtype.itemsize
    case = f"measured {found / batch:.4f} batches, explained {told / batch:.4f}"
    # The norms of matrices may be there in float64 as well.
    assert abs(found - told) <= 64 * 3, case


@pytest.mark.parametrize("shape", [(192, 384), (384, 192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_explain_counts_a_pass_that_the_host_leaves_out(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """At full rank the orthonormalization of R takes most, and its second pass more than the others."""
    optimizer = stepped(Dion, [shape] * 3, dtype, rank_fraction=1.0)
    found, told = measured(optimizer), explain(optimizer).temporary_bytes
    assert found <= told <= 1.2 * found


@pytest.mark.parametrize("shape", [(8, 8), (30, 50)])
@pytest.mark.parametrize("make", FAMILY)
def test_explain_tells_what_small_matrices_take(make: Any, shape: tuple[int, int]) -> None:
    optimizer = stepped(make, [shape] * 100, torch.float32, nonfinite="skip")
    found, told = measured(optimizer), explain(optimizer).temporary_bytes
    assert abs(found - told) <= 64 * 100, f"measured {found}, explained {told}"


def test_state_that_is_moved_together_is_not_temporary() -> None:
    """The first step makes one storage of the right factors; later ones find it."""
    optimizer = stepped(Dion, [(64, 96)] * 4, torch.float32, rank_fraction=0.5)
    assert explain(optimizer).temporary_bytes == measured(optimizer)
    fresh = Dion([nn.Parameter(torch.zeros(64, 96)) for _ in range(4)], rank_fraction=0.5)
    assert explain(fresh).temporary_bytes == measured(optimizer)


@pytest.mark.parametrize("view", [{"blocks": 4}, {"blocks": (64, 32)}, {"transposed": True}])
def test_matrices_of_a_parameter_are_explained(view: dict[str, Any]) -> None:
    groups = [{"params": [nn.Parameter(torch.randn(96, 80))], "view": MatrixView(**view)}]
    if "transposed" in view:
        groups = [{"params": [nn.Parameter(torch.randn(3, 96, 80))], "view": MatrixView(**view)}]
    optimizer = Dion(groups)
    for _ in range(3):
        for param in groups[0]["params"]:
            param.grad = torch.randn_like(param)
        optimizer.step()
    explanation = explain(optimizer)
    assert explanation.temporary_bytes == measured(optimizer)
    assert sum(batch.batch_bytes for batch in explanation.batches) == groups[0]["params"][0].nbytes


@pytest.mark.parametrize("make", FAMILY)
def test_batches_are_capped(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(32, 48)] * 7 + [(64, 64)] * 3 + [(200, 100)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    whole = explain(make(params))
    assert [batch.matrices for batch in whole.batches] == [7, 3, 1]
    cap = 4 * 4 * 32 * 48
    monkeypatch.setattr("orthon.step.routes.BATCH_BYTES", cap)
    capped = explain(make(params))
    # The polar factors of such small matrices, in float32, take more than twice the cap for two of them.
    expected = [1] * 11 if make in (Muon, NorMuon) else [3, 4, 1, 1, 1, 1]
    assert [batch.matrices for batch in capped.batches] == expected
    for batch in capped.batches:
        assert batch.batch_bytes <= cap or batch.matrices == 1, batch
    for explanation in (whole, capped):
        assert sum(batch.batch_bytes for batch in explanation.batches) == sum(param.nbytes for param in params)
        assert all(len(wave.batches) == 1 for wave in explanation.waves)
    assert capped.temporary_bytes == max(wave.temporary_bytes for wave in capped.waves)
    largest = [max(w.temporary_bytes for w in e.waves if w.batches[0].shape == (32, 48)) for e in (capped, whole)]
    assert largest[0] <= 0.7 * largest[1]


@pytest.mark.parametrize("algorithm", ["adamw", "lion"])
def test_batches_of_any_shapes_are_capped(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10, 20, 30, 100, 40, 60, 1, 99, 1]
    monkeypatch.setattr("orthon.step.routes.BATCH_BYTES", 4 * 100)
    told = explain(Dion([{"params": [nn.Parameter(torch.zeros(k)) for k in sizes], "algorithm": algorithm}]))
    assert [batch.batch_bytes // 4 for batch in told.batches] == [60, 100, 100, 100, 1]


def test_batches_that_are_alike_cost_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind is tried once; what is told of it is told of all."""
    monkeypatch.setattr("orthon.step.routes.BATCH_BYTES", 2 * 4 * 40 * 40)
    tried: list[int] = []

    def trial(_: ExplainedStep, wave: Wave) -> tuple[tuple[Message, ...], int]:
        (batch,) = wave
        tried.append(len(batch.pieces))
        return (), len(tried)

    monkeypatch.setattr(ExplainedStep, "carry_out", trial)
    explanation = explain(Dion([nn.Parameter(torch.zeros(40, 40)) for _ in range(7)]))
    assert tried == [1, 2]
    assert [wave.temporary_bytes for wave in explanation.waves] == [1, 2, 2, 2]


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("make", FAMILY)
def test_plans_for_a_gpu(make: Any, nonfinite: str) -> None:
    model = nn.Sequential(nn.Embedding(50, 256), nn.Linear(256, 512), nn.Linear(512, 256), nn.Conv2d(3, 4, 3))
    on_cpu = explain(make.for_model(model, nonfinite=nonfinite))
    on_gpu = explain(make.for_model(model, nonfinite=nonfinite), machine="h100")
    assert (on_cpu.machine, on_gpu.machine) == ("cpu", "h100")
    assert [batch.parameters for batch in on_gpu.batches] == [batch.parameters for batch in on_cpu.batches]
    if make is Dion:  # products of three parts in bfloat16
        assert on_gpu.waves[1].temporary_bytes > on_cpu.waves[1].temporary_bytes
    assert explain(make.for_model(model, nonfinite=nonfinite), machine="cpu") == on_cpu


@pytest.mark.parametrize(
    ("waves", "expected"),
    [
        ([], 0),
        ([(5, False), (7, False), (6, False)], 7),  # none waits: one after the other
        ([(5, True), (7, True), (6, True), (4, True)], 18),  # three are under way
        ([(5, True), (70, False), (60, False)], 75),  # one computes while another waits
        ([(5, True), (7, True), (1, False)], 13),
        ([(5, True), (7, True), (6, True), (4, False)], 18),
    ],
)
def test_waves_under_way_together_add_up(waves: list[tuple[int, bool]], expected: int) -> None:
    assert most_under_way(waves) == expected


def test_the_memory_is_printed() -> None:
    params = [nn.Parameter(torch.zeros(64, 64)) for _ in range(3)]
    explanation = explain(Dion(params, rank_fraction=0.25))
    told = size(explanation.temporary_bytes)
    assert told.endswith(" kB")
    assert str(explanation).splitlines()[-2:] == [
        "",
        f"memory of a step beside weights, gradients and state: at most {told}, in 1 batch of at most "
        "49.2 kB of gradients",
    ]
    batch = BatchRow(("w",), 1, (1, 1), "dion", "whole", "", "", 4)
    two = Explanation((), (WaveRow((batch,), (), 0),) * 2, temporary_bytes=132_149_999)
    assert str(two).endswith("state: at most 132 MB, in 2 batches of at most 4 bytes of gradients")
    assert "memory" not in str(Explanation(()))


def test_the_choice_of_adamw_on_an_accelerator_is_told() -> None:
    """By torch's own choice a CPU takes one parameter after the other, and an accelerator all together."""

    def explained(device: str, *, machine: str | None = None, **options: Any) -> int:
        params: list[Tensor] = [nn.Parameter(torch.zeros(30, 40, device=device)) for _ in range(20)]
        optimizer = Dion([{"params": params, "algorithm": "adamw", **options}])
        return explain(optimizer, machine=machine).temporary_bytes

    assert explained("meta") > 3 * explained("cpu")
    assert explained("meta") == explained("cpu", foreach=True)
    assert explained("meta", foreach=False) == explained("cpu")
    assert explained("meta") == explained("cpu", machine="a100") == explained("meta", machine="a100")
    assert explained("cpu") == explained("meta", machine="cpu")


@pytest.mark.parametrize(
    ("make", "options", "shape", "dtype", "device"),
    crossed(
        [(make, options) for make, options in KINDS if "algorithm" not in options],
        [(256, 256), (192, 576), (576, 192)],
        [torch.float32, torch.bfloat16],
        ["cpu", "meta"],
        every=5,
    ),
)
def test_a_step_takes_two_batches_at_most(
    make: Any,
    options: dict[str, Any],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that would take more has fewer matrices. `nonfinite="skip"` makes one more, of the gradients."""
    batch = 24 * math.prod(shape) * dtype.itemsize
    monkeypatch.setattr("orthon.step.routes.BATCH_BYTES", batch)
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for _ in range(50)]
    told = explain(make(params, **options))
    limit = 3 if options.get("nonfinite") == "skip" else 2
    assert told.temporary_bytes <= limit * batch, f"{told.temporary_bytes / batch:.2f} batches"
    assert max(b.matrices for b in told.batches) >= 4, "batches are no smaller than they need to be"
