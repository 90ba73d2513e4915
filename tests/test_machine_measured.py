"""A machine measured, and written as plain values and read again."""

from dataclasses import asdict, fields
from typing import Any

import pytest
import torch

from orthon.machines import MACHINES, Link, Machine, machine_from, machine_of, measure, plain_values
from orthon.machines.measuring import _rate_and_side

# What is measured on a CPU, and what is taken from `machine_of`.
TAKEN = {"name", "device", "ranks_per_node", "within_node", "between_nodes"}


def test_a_cpu_is_measured() -> None:
    told: list[tuple[str, float]] = []
    machine = measure("cpu", progress=lambda name, part: told.append((name, part)), quick=True)
    here = machine_of(torch.device("cpu"))
    for field in fields(Machine):
        if field.name in TAKEN:
            assert getattr(machine, field.name) == getattr(here, field.name)
        elif field.name not in ("first_touch", "product_side", "factor_side"):
            assert getattr(machine, field.name) != getattr(here, field.name), field.name
    # No computer that runs this is slower or faster by such factors.
    for name in ("float64", "float32", "bfloat16", "factorization", "memory_bandwidth", "reordering"):
        assert 1e7 < getattr(machine, name) < 1e14, name
    assert machine.tf32 == machine.float32
    assert 1e-8 < machine.launch < machine.kernel < 1e-2
    assert machine.product_side >= 1
    assert told[0] == ("products", 0.0)
    assert told[-1] == ("done", 1.0)
    assert [part for _, part in told] == sorted(part for _, part in told)


def test_it_leaves_settings_as_they_were() -> None:
    before = torch.backends.cuda.matmul.fp32_precision, torch.get_num_threads()
    state = torch.get_rng_state()
    measure("cpu", quick=True)
    assert (torch.backends.cuda.matmul.fp32_precision, torch.get_num_threads()) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_meta_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="measure: device should be one that computes, but is 'meta'"):
        measure("meta")


def test_rate_and_side_are_found() -> None:
    def at(d: int, rate: float, side: float) -> tuple[int, float]:
        return d, rate / (1 + side / d)

    assert _rate_and_side(at(768, 1e11, 20), at(48, 1e11, 20)) == pytest.approx((1e11, 20))
    assert _rate_and_side(at(768, 1e11, 0), at(48, 1e11, 0)) == pytest.approx((1e11, 1))
    assert _rate_and_side((768, 1e11), (48, 2e11)) == (1e11, 1), "smaller ones that seem faster"
    assert _rate_and_side((768, 1e11), (48, 1e6)) == pytest.approx((2e11, 768)), "small ones that somebody disturbs"


# Plain values

H100 = plain_values(MACHINES["h100"])


@pytest.mark.parametrize("name", MACHINES)
def test_values_come_back(name: str) -> None:
    values = plain_values(MACHINES[name])
    assert values == asdict(MACHINES[name])
    assert list(values) == [field.name for field in fields(Machine)]
    assert machine_from(values, "file") == MACHINES[name]


def test_a_machine_keeps_its_device_under_another_name() -> None:
    values = plain_values(MACHINES["cpu"])
    assert machine_from({**values, "name": "my laptop"}, "file").device == "cpu"
    for name, device in (("cpu", "cpu"), ("my laptop", "cuda")):  # of older files
        older = {**{key: value for key, value in values.items() if key != "device"}, "name": name}
        assert machine_from(older, "file").device == device


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert machine_from({**H100, "float32": "5e13", "within_node": {"bandwidth": "2e11", "latency": 1e-5}}, "f") == (
        machine_from({**H100, "float32": 5e13, "within_node": {"bandwidth": 2e11, "latency": 1e-5}}, "f")
    )


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in H100.items() if name not in names}


BAD: dict[str, tuple[Any, str]] = {
    "missing": (without("float32"), "should say float32 of a machine, but does not"),
    "several missing": (without("float32", "kernel"), "should say float32, kernel of a machine, but does not"),
    "unknown": ({**H100, "flaot32": 1.0}, "unknown value 'flaot32'; did you mean 'float32'?"),
    "unlike any": ({**H100, "zzz": 1.0}, "unknown value 'zzz'; a machine has name, device, float64, "),
    "no text": ({**H100, 3: 1.0}, "unknown value 3; a machine has name, "),
    "negative": ({**H100, "tf32": -1.0}, "tf32 should be a finite number > 0, but is -1.0"),
    "zero": ({**H100, "launch": 0}, "launch should be a finite number > 0, but is 0"),
    "negative touch": ({**H100, "first_touch": -1e-9}, "first_touch should be a finite number >= 0, but is -1e-09"),
    "text": ({**H100, "float64": "fast"}, "float64 should be a finite number > 0, but is 'fast'"),
    "nothing": ({**H100, "float64": None}, "float64 should be a finite number > 0, but is None"),
    "infinite": ({**H100, "float64": float("inf")}, "float64 should be a finite number > 0, but is inf"),
    "400 digits": ({**H100, "memory": 10**400}, "memory should be a finite number > 0, but is a huge number"),
    "10,000 digits": (
        {**H100, "ranks_per_node": 10**10_000},
        "ranks_per_node should be a finite number > 0, but is a h",
    ),
    "huge": ({**H100, "kernel": 1e300}, "kernel should be from 1e-30 to 1e+30, but is 1e+300"),
    "tiny": ({**H100, "tf32": 5e-324}, "tf32 should be from 1e-30 to 1e+30, but is 5e-324"),
    "red": ({**H100, "name": "\x1b[31m"}, "name should have printable characters alone, but is '\\x1b[31m'"),
    "half a rank": ({**H100, "ranks_per_node": 1.5}, "ranks_per_node should be an integer >= 1, but is 1.5"),
    "device": ({**H100, "device": "gpu"}, "device should be 'cpu' or 'cuda', but is 'gpu'"),
    "name": ({**H100, "name": 5}, "name should be a string, but is 5"),
    "no link": ({**H100, "within_node": 3e9}, "within_node: should have the values of a link, bandwidth, latency, but"),
    "half a link": ({**H100, "within_node": {"latency": 1.0}}, "within_node: should say bandwidth of a link, but does"),
    "slow link": (
        {**H100, "between_nodes": {"bandwidth": -4, "latency": 1.0}},
        "between_nodes: bandwidth should be a finite number > 0, but is -4",
    ),
    "unknown in a link": (
        {**H100, "between_nodes": {"bandwith": 4, "bandwidth": 4, "latency": 1.0}},
        "between_nodes: unknown value 'bandwith'; did you mean 'bandwidth'?",
    ),
    "list": ([1, 2], "should have the values of a machine, name, device, float64, "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_in_one_line(case: str) -> None:
    values, message = BAD[case]
    with pytest.raises(ValueError, match="^here.yaml: ") as error:
        machine_from(values, "here.yaml")
    assert str(error.value).startswith(f"here.yaml: {message}")
    assert "\n" not in str(error.value)


def test_links_are_links() -> None:
    machine = machine_from(H100, "file")
    assert isinstance(machine.within_node, Link)
