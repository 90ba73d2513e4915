"""Machines: the table, what a user may write for one, what is detected, and which link ranks use."""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from orthon.machines import MACHINES, Link, Machine, as_machine, detect, machine_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
GPUS = ("a100", "h100", "h200", "b200", "gb300")
H100 = MACHINES["h100"]
PAGE = (Path(__file__).parents[1] / "docs" / "machines.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _detect_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    detect._detected.cache_clear()
    yield
    detect._detected.cache_clear()


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, name: str, *, memory: float = 85e9, visible: int = 8) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(memory)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)


# The table


def test_names_are_keys() -> None:
    assert set(MACHINES) == {"cpu", *GPUS}
    assert all(machine.name == key for key, machine in MACHINES.items())


@pytest.mark.parametrize("name", MACHINES)
def test_figures_are_in_order(name: str) -> None:
    machine = MACHINES[name]
    assert machine.float64 <= machine.float32 <= machine.tf32 <= machine.bfloat16
    assert machine.factorization < machine.float32
    assert machine.between_nodes.bandwidth <= machine.within_node.bandwidth
    assert machine.within_node.latency < machine.between_nodes.latency
    assert machine.within_node.bandwidth < machine.memory_bandwidth
    assert machine.launch < machine.within_node.latency


def test_gpus_do_not_lose_from_one_generation_to_the_next() -> None:
    """But for float64, which a B200 multiplies more slowly."""
    for earlier, later in pairwise(GPUS):
        for name in ("float32", "tf32", "bfloat16", "factorization", "memory_bandwidth", "memory"):
            assert getattr(MACHINES[later], name) >= getattr(MACHINES[earlier], name), (later, name)
    assert all(MACHINES["cpu"].bfloat16 < MACHINES[gpu].float64 for gpu in GPUS)


def test_the_cpu_has_40_gflops_and_sends_a_number_in_16_ns() -> None:
    cpu = MACHINES["cpu"]
    assert cpu.seconds(40e9, F32) == cpu.seconds(40e9, BF16) == 1.0
    for ranks in (range(2), range(1000)):
        more = cpu.sending_seconds(4e9, ranks) - cpu.sending_seconds(0, ranks)
        assert more == pytest.approx(16.0)


PUBLISHED = {
    "Newton-Schulz, 4096": 5.1,
    "Newton-Schulz, 16384": 297.0,
    "Cholesky QR, 4096": 11.0,
    "Cholesky QR, 16384": 395.0,
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_estimates_are_within_a_factor_of_two_of_published_times(case: str) -> None:
    """Milliseconds on one H100. The page shows both."""
    method, n = case.split(", ")
    cube = int(n) ** 3
    if method == "Newton-Schulz":
        estimate = 1e3 * H100.seconds(5 * 3 * 2 * cube, BF16)  # five steps of three products
    else:  # a Gram matrix, its factorization and a triangular solve
        estimate = 1e3 * (H100.seconds(2 * cube, F32) + H100.factor_seconds(cube / 3 + cube, F32))
    assert PUBLISHED[case] / 2 < estimate < PUBLISHED[case] * 2
    found = re.search(rf"{method} in .*, {n}² \| (\S+) ms \| (\S+) ms \|", PAGE)
    assert found is not None
    assert [float(shown) for shown in found.groups()] == pytest.approx([PUBLISHED[case], estimate], rel=0.01)


def test_the_page_shows_the_table() -> None:
    shown = {"products in TF32": "tf32", "factorizations": "factorization", "launch of an operation": "launch"}
    shown |= {f"products in {name}": name for name in ("float64", "float32", "bfloat16")}
    shown |= {name: name.replace(" ", "_") for name in ("memory bandwidth", "memory", "ranks per node")}
    shown |= {
        f"{figure} {place} node{plural}": f"{place}_node{plural}.{figure}"
        for figure in ("bandwidth", "latency")
        for place, plural in (("within a", ""), ("between", "s"))
    }
    shown = {label: name.replace("within a", "within") for label, name in shown.items()}
    shown |= {"side for half of these rates": "product_side", "size for half of this rate": "factor_side"}
    shown |= {"transposed copies": "reordering", "new memory": "first_touch"}
    shown |= {"smallest operation on the device": "kernel"}
    units = {"TFLOP/s": 1e12, "GB/s": 1e9, "GB": 1e9, "µs": 1e-6, "s/GB": 1e-9, "": 1}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
    assert ["figure", "unit", *MACHINES] in lines
    rows = {line[0]: line[1:] for line in lines if len(line) == 2 + len(MACHINES) and line[0] in shown}
    assert rows.keys() == shown.keys(), "every figure once"
    for label, (unit, *cells) in rows.items():
        for cell, machine in zip(cells, MACHINES.values(), strict=True):
            value: object = machine
            for part in shown[label].split("."):
                value = getattr(value, part)
            assert isinstance(value, int | float)
            assert float(cell.replace(",", "")) == pytest.approx(value / units[unit], rel=0.004), (label, machine.name)
    assert {name.split(".")[0] for name in shown.values()} == {field.name for field in fields(Machine)} - {
        "name",
        "device",
    }


# Times


def test_times_are_work_over_rate() -> None:
    machine = replace(H100, float64=1e12, float32=2e12, tf32=4e12, bfloat16=8e12, factorization=5e11, name="round")
    assert machine.seconds(8e12, F64) == 8
    assert machine.seconds(8e12, F32) == 4
    assert machine.seconds(8e12, "tf32") == 2
    assert machine.seconds(8e12, BF16) == machine.seconds(8e12, F16) == 1
    assert machine.factor_seconds(1e12, F32) == machine.factor_seconds(1e12, BF16) == 2
    assert machine.factor_seconds(1e12, F64) == 4, "as much slower as products"
    assert replace(machine, memory_bandwidth=2e12).traffic_seconds(1e12) == 0.5


def test_small_matrices_do_not_reach_the_rate() -> None:
    machine = replace(H100, float32=1e12, float64=5e11, factorization=1e11, product_side=10.0, factor_side=30.0)
    assert machine.product_seconds(1e12, "float32", side=10) == 2
    assert machine.product_seconds(1e12, "float64", side=5) == 6
    assert machine.small_factor_seconds(1e11, in_float64=False, side=30) == 2
    assert machine.small_factor_seconds(1e11, in_float64=True, side=30) == 4
    assert replace(machine, reordering=1e9).reordering_seconds(2e9) == 2


SMALL = replace(H100, within_node=Link(100.0, 1.0), between_nodes=Link(10.0, 5.0), ranks_per_node=4)


@pytest.mark.parametrize(
    ("ranks", "within"),
    [
        (range(4), True),
        (range(4, 8), True),
        ((7, 5), True),
        ((9,), True),
        (range(3, 5), False),
        (range(8), False),
        (range(0, 16, 4), False),
        ((8, 3, 9), False),
    ],
)
def test_ranks_of_one_node_use_its_link(ranks: range | tuple[int, ...], within: bool) -> None:
    assert SMALL.link(ranks) is (SMALL.within_node if within else SMALL.between_nodes)


def test_sending_takes_latency_and_bandwidth() -> None:
    assert SMALL.sending_seconds(300, range(4)) == 1 + 3
    assert SMALL.sending_seconds(300, range(8)) == 5 + 30
    assert SMALL.sending_seconds(300, range(8), messages=3) == 15 + 30
    assert SMALL.sending_seconds(300, (2,), messages=3) == 0, "one rank sends nothing"


@pytest.mark.parametrize("kind", ["sum", "gather"])
def test_ranks_of_a_node_receive_together_what_all_of_them_need(kind: str) -> None:
    assert SMALL.sending_seconds(400, range(8), kind=kind) == 5 + 10, "four ranks of each node"
    assert SMALL.sending_seconds(400, (0, 1, 4, 5), kind=kind) == 5 + 20, "two"
    assert SMALL.sending_seconds(400, (0, 4, 8), kind=kind) == 5 + 40, "one"
    assert SMALL.sending_seconds(400, range(4), kind=kind) == 1 + 4, "within a node"
    wide = replace(SMALL, ranks_per_node=100)
    assert wide.sending_seconds(400, range(200), kind=kind) == 5 + 4, "never faster than within a node"


# What a user may write


def test_a_machine_may_be_named_or_given() -> None:
    given = replace(H100, ranks_per_node=4)
    assert given.ranks_per_node == 4
    assert given.link(range(8)) is given.between_nodes
    assert as_machine(given, CPU) is given
    assert as_machine("h100", CPU) is H100
    assert as_machine(None, CPU) == machine_of(CPU)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("H100", "; did you mean 'h100'?"), ("b20", "; did you mean 'b200'?"), ("tpu-v5", "but is 'tpu-v5'")],
)
def test_unknown_names_are_refused(name: str, ending: str) -> None:
    with pytest.raises(ValueError, match=r"machine should be None, .*Machine or one of 'cpu', ") as error:
        as_machine(name, CPU)
    assert str(error.value).endswith(ending)
    assert repr(name) in str(error.value)


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match=r"machine should be .* but is 100"):
        as_machine(100, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field", [f.name for f in fields(Machine) if f.type not in (str, Link) and f.name != "first_touch"]
)
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_figures_are_checked(field: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"Machine: {field} should be .* but is {value!r}"):
        replace(H100, **{field: value})  # type: ignore[arg-type]


def test_new_memory_may_cost_nothing() -> None:
    assert replace(H100, first_touch=0).first_touch == 0
    with pytest.raises(ValueError, match=r"Machine: first_touch should be a finite number >= 0, but is -1"):
        replace(H100, first_touch=-1)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_figures_are_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"Machine: tf32 should be a finite number > 0, but is"):
        replace(H100, tf32=value)
    with pytest.raises(ValueError, match=r"Link: latency should be a finite number > 0, but is"):
        Link(bandwidth=1e9, latency=value)


def test_links_names_and_counts_have_their_types() -> None:
    with pytest.raises(
        TypeError, match=r"Machine: between_nodes should be an orthon.machines.Link, but is 50000000000\.0"
    ):
        replace(H100, between_nodes=50e9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Machine: name should be a string, but is None"):
        replace(H100, name=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Machine: device should be 'cpu' or 'cuda', but is None"):
        replace(H100, device=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Machine: device should be 'cpu' or 'cuda', but is 'tpu'"):
        replace(H100, device="tpu")
    with pytest.raises(TypeError, match=r"Machine: ranks_per_node should be an integer >= 1, but is 4\.5"):
        replace(H100, ranks_per_node=4.5)  # type: ignore[arg-type]


# What is detected


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("A100-SXM4-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "b200"),
        ("NVIDIA GB300", "gb300"),
        ("NVIDIA B300 SXM6 AC", "gb300"),
    ],
)
def test_gpus_are_known_by_name(gpu: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, gpu, memory=85.1e9)
    assert machine_of(CUDA) == replace(MACHINES[name], memory=84e9, ranks_per_node=8)
    assert as_machine(None, CUDA) is machine_of(CUDA), "detected once"


def test_another_gpu_is_taken_for_an_a100(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "NVIDIA L4", memory=23.6e9)
    assert machine_of(CUDA) == replace(MACHINES["a100"], name="NVIDIA L4, taken for a100", memory=20e9)


def test_a_small_gpu_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "NVIDIA T400", memory=2e9)
    assert machine_of(CUDA).memory == 4e9


def test_another_accelerator_is_taken_for_an_a100() -> None:
    assert machine_of(torch.device("xpu")) == replace(MACHINES["a100"], name="xpu, taken for a100")


def test_ranks_of_a_node_are_those_that_torchrun_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "NVIDIA H100 80GB HBM3", visible=8)
    assert machine_of(CUDA).ranks_per_node == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine_of(CUDA).ranks_per_node == 2
    assert machine_of(CPU) == replace(MACHINES["cpu"], ranks_per_node=2)


@pytest.mark.parametrize(("visible", "ranks"), [(4, 4), (2, 2), (1, 8)])
def test_without_torchrun_a_node_has_a_rank_for_each_gpu(
    visible: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, "NVIDIA H100 80GB HBM3", visible=visible)
    assert machine_of(CUDA).ranks_per_node == ranks


def test_without_torchrun_cpus_are_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_of(CPU) == replace(MACHINES["cpu"], ranks_per_node=1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 96)
    assert machine_of(CPU).link(range(96)) is machine_of(CPU).within_node


def test_meta_is_no_machine() -> None:
    with pytest.raises(AssertionError, match="parameters on meta are on no machine"):
        machine_of(torch.device("meta"))
    assert as_machine("b200", torch.device("meta")) is MACHINES["b200"]
