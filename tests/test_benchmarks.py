"""The benchmarks: that the suites run, that their checks find wrong steps, and that their counts are right."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import cpu, gpu, plain_loops, report, targets
from benchmarks.cases import Case, fake_ranks, llama_layer, parameters
from benchmarks.checks import WrongStepError, check
from benchmarks.contenders import ADAMW, FAMILY, OF_THE_PAPER, PLAIN_LOOPS, TORCH, TORCH_MUON, Contender, named
from benchmarks.counts import counts, product_flops
from benchmarks.layouts import WORLDS
from benchmarks.measure import Sets, Setting, in_row
from benchmarks.products import dion_products
from benchmarks.results import Results, Row
from benchmarks.roofline import Roofline
from benchmarks.timing import copies_beyond_cache, in_a_row, in_turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def run(main: Callable[[list[str]], Results], folder: Path, *flags: str) -> dict[str, Any]:
    results = main(["--small", "--out", str(folder), *flags])
    data: dict[str, Any] = json.loads(results.path.read_text())
    return data


def rows_of(data: dict[str, Any], case: str, dtype: str) -> dict[str, dict[str, Any]]:
    return {row["contender"]: row for row in data["rows"] if (row["case"], row["dtype"]) == (case, dtype)}


def check_row(row: dict[str, Any]) -> None:
    assert row["note"] == "", row
    assert row["seconds"] > 0, row
    assert row["first_seconds"] > 0, row
    assert row["error"] < 0.3, row
    assert row["roofline_seconds"] > 0, row


def test_the_cpu_suite_in_miniature(tmp_path: Path) -> None:
    data = run(cpu.main, tmp_path, "--threads", "1")
    rows = rows_of(data, "GPT-2 small", "float32")
    for contender in (*TORCH, *named(FAMILY, "Dion 1/4", "Dion 1/16", "Muon", "NorMuon"), *OF_THE_PAPER, *PLAIN_LOOPS):
        check_row(rows[contender.name])
        assert rows[contender.name]["ratios"].keys() >= {TORCH_MUON}
    (tail,) = data["tables"]["tail"]
    assert tail["of_without"] == tail["step_ms"] / tail["without_ms"] > 0
    assert {line["ranks"] for line in data["tables"]["gloo ranks"]} == {1, 2}
    assert all(line["ms"] > 0 for name in ("gloo ranks", "layouts") for line in data["tables"][name])
    assert {line["layout"] for line in data["tables"]["layouts"]} == {n for names in WORLDS.values() for n in names}
    assert [line["claim"] for line in data["targets"]] == [target.claim for target in targets.CPU]
    assert data["versions"]["torch"] == torch.__version__
    assert {"date", "commit", "machine", "arguments", "roofline"} <= data.keys()
    report.draw(data, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_gpu_suite_in_miniature_on_a_cpu(tmp_path: Path) -> None:
    data = run(gpu.main, tmp_path)
    for case, dtype in (("LLaMA-3 405B layer", "bfloat16"), ("GPT-2 small", "bfloat16"), ("72 of 32×32", "float32")):
        rows = rows_of(data, case, dtype)
        for name in (ADAMW, TORCH_MUON, "Dion 1/4", "Muon"):
            check_row(rows[name])
        assert rows["Dion 1/4"]["ratios"].keys() == {ADAMW, TORCH_MUON}
    for ranks in (8, 64, 512):
        rows = rows_of(data, f"LLaMA-3 405B layer, one of {ranks} ranks", "bfloat16")
        for name in (ADAMW, "Dion 1/4", "Muon", "Dion2 1/4"):
            assert rows[name]["seconds"] > 0, rows[name]
    assert [line["claim"] for line in data["targets"]] == [target.claim for target in targets.GPU]
    assert {line["note"] for line in data["tables"]["CUDA graphs"]} == {"graphs need a GPU"}
    assert all(line["ms"] > 0 for line in data["tables"]["polar factors alone"])
    errors = {line["gram_in"]: line["error"] for line in data["tables"]["orthonormalization alone"]}
    assert errors["float32"] < errors["3 × bfloat16"] < errors["bfloat16"] < 0.1, errors


def test_the_gpu_suite_asks_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "--small" in capsys.readouterr().err


class Idle(plain_loops.Muon):
    """Does nothing after its first step."""

    def step(self, closure: None = None) -> None:
        if not self.state:
            super().step(closure)


class Turned(plain_loops.Plain):
    def polar(self, U: torch.Tensor) -> torch.Tensor:
        return -super().polar(U)


class Backward(plain_loops.Muon):
    factors = Turned()


class Partial(plain_loops.Plain):
    def polar(self, U: torch.Tensor) -> torch.Tensor:
        found = super().polar(U)
        result = torch.empty_like(found)
        result[:-1] = found[:-1]
        return result


class Unwritten(plain_loops.Muon):
    """Leaves its last row to whatever lies in memory."""

    factors = Partial()


SHAPES = ((48, 96), (96, 48), (64, 64))


@pytest.mark.parametrize("make", [Idle, Backward, Unwritten], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checks_refuse_a_wrong_step(make: type[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    wrong = Contender(make.__name__, "muon", make, newton_schulz=True)
    with pytest.raises(WrongStepError, match=make.__name__):
        check(wrong, Case("any", SHAPES), dtype=dtype, device=CPU)


@pytest.mark.parametrize(
    "contender", [*TORCH, *FAMILY[:6], *OF_THE_PAPER, *PLAIN_LOOPS], ids=lambda contender: contender.name
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checks_accept_right_steps(contender: Contender, dtype: torch.dtype) -> None:
    assert check(contender, Case("any", SHAPES), dtype=dtype, device=CPU) < 0.2


@pytest.mark.parametrize(
    ("contender", "flops", "numbers"),
    [
        # 8·64·32·8 for the products, 3·32·8² for the orthonormalization; weights, gradient and momentum, and Q twice.
        ("Dion 1/4 of the paper", 8 * 64 * 32 * 8 + 3 * 32 * 8**2, 5 * 64 * 32 + 2 * 64 * 8),
        # Without feedback a product of 2·64·32·8 less, and Q is orthonormal as well.
        ("Dion 1/4", 6 * 64 * 32 * 8 + 3 * (32 + 64) * 8**2, 5 * 64 * 32 + 2 * 64 * 8),
        # Five steps of two products with the matrix and one of Gram matrices.
        (TORCH_MUON, 5 * (4 * 32**2 * 64 + 2 * 32**3), 5 * 64 * 32),
        (ADAMW, 0, 7 * 64 * 32),
    ],
)
@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("shape", [(64, 32), (32, 64)], ids=str)
def test_counts_of_one_matrix(contender: str, flops: int, numbers: int, ranks: int, shape: tuple[int, int]) -> None:
    (who,) = named((*TORCH, *FAMILY, *OF_THE_PAPER), contender)
    found = counts(who, Case("one", (shape,), ranks), dtype=torch.float32, device=CPU)
    assert (found.flops, found.bytes) == (flops / ranks, 4 * numbers / ranks)


def test_counts_are_those_that_torch_sees() -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    with FlopCounterMode(display=False) as counter:
        dion_products(params, 1 / 4)()
    # It does not see products that are added in place, the other half.
    assert 2 * counter.get_total_flops() == product_flops(SHAPES, 1 / 4)


def test_the_roofline_is_the_larger_of_two_times() -> None:
    (muon, adamw) = named(TORCH, TORCH_MUON, ADAMW)
    case = Case("one", ((64, 32),))
    best = Roofline(CPU, bandwidth=1e9, rates={torch.float32: 1e9, torch.bfloat16: 1e8})
    # In bfloat16: 1,638,400 operations.
    assert best.seconds(counts(muon, case, dtype=torch.float32, device=CPU)) == pytest.approx(1638400 / 1e8)
    assert best.seconds(counts(adamw, case, dtype=torch.float32, device=CPU)) == pytest.approx(4 * 7 * 2048 / 1e9)


@pytest.mark.parametrize("ranks", [8, 64])
def test_a_shard_has_its_share_of_the_rows(ranks: int) -> None:
    case = Case("layer", llama_layer(64, 16, 224)).shard(ranks)
    with fake_ranks(ranks):
        for shape, param in zip(case.shapes, parameters(case, dtype=torch.float32, device=CPU), strict=True):
            assert param.shape == shape
            assert param.to_local().shape == (math.ceil(shape[0] / ranks), shape[1])


def test_times_are_taken_in_turns_until_the_time_is_over() -> None:
    log: list[str] = []
    taken = in_turns({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, repeats=9, seconds=0.0)
    assert log == ["a", "b"] * 3
    assert [len(taken[name]) for name in "ab"] == [3, 3]
    log.clear()
    works = [lambda: log.append("a"), lambda: log.append("b")]
    assert len(in_a_row(works, CPU, repeats=4, seconds=10.0)) == 4
    assert log == ["a", *"abab"]
    assert copies_beyond_cache(1, CPU) == 1


@pytest.mark.parametrize(
    ("measured", "verdict"), [(0.1, "met"), (0.12, "met"), (0.2, "missed"), (None, "not measured")]
)
def test_verdicts(tmp_path: Path, measured: float | None, verdict: str) -> None:
    results = Results("any", folder=tmp_path, arguments={}, device=CPU)
    if measured is not None:
        ratios = {TORCH_MUON: measured}
        results.add(Row("GPT-2 small", "Dion 1/16", "float32", 48, seconds=1.0, first_seconds=1.0, ratios=ratios))
    found = {line.claim: line for line in targets.judged(targets.CPU, results)}
    assert found["GPT-2 small, Dion 1/16, of torch.optim.Muon"].verdict == verdict


def test_weights_are_drawn_anew_for_each_optimizer() -> None:
    """In bfloat16, no later one could move those that many steps of another have made large."""
    sets = Sets(Case("one", ((32, 16),)), dtype=torch.bfloat16, device=CPU)
    for (param,) in sets.params:
        param.data.fill_(1e3)
    (muon,) = named(FAMILY, "Muon")
    best = Roofline(CPU, bandwidth=1e9, rates=dict.fromkeys((torch.float32, torch.bfloat16), 1e9))
    row = in_row(muon, sets, Setting(best, 3, 0.0), {})
    assert row.seconds
