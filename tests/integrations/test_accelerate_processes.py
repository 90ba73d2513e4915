"""Orthon's optimizers in Accelerate on two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from tests.integrations.support.accelerate_ranks import ACCUMULATED, BAD, CLIP, STEPS, loss_of, net
from tests.integrations.support.processes import PROCESSES, run

# How the model is trained, and in which precisions.
CASES = {"ddp": ["no", "bf16", "fp16"], "ddp together": ["no"], "fsdp2": ["no", "fp16"]}


def in_one_process(precision: str) -> tuple[dict[str, Tensor], list[list[float]]]:
    """Return the weights, and the rates after each step, of a loop by hand over the data of both processes."""
    model = net()
    optimizer = orthon.Dion.for_model(model, lr=0.05)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    # Accelerate's schedulers go on by a step for each process.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9 ** (PROCESSES * step))
    rates = []
    for step in range(STEPS):
        if precision != "fp16" or step not in BAD:
            optimizer.zero_grad()
            for micro_step in range(step * ACCUMULATED, (step + 1) * ACCUMULATED):
                for rank in range(PROCESSES):
                    with torch.autocast("cpu", dtype, enabled=precision != "no"):
                        loss = loss_of(model, micro_step, rank)
                    (loss / (PROCESSES * ACCUMULATED)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return dict(model.state_dict()), rates


@pytest.mark.parametrize("kind", CASES)
def test_it_does_the_steps_of_one_process_and_goes_on_from_a_saved_state(kind: str, tmp_path: Path) -> None:
    results = run("accelerate_ranks", tmp_path, kind, *CASES[kind])
    for precision in CASES[kind]:
        weights, rates = in_one_process(precision)
        loose = {} if precision == "no" else {"rtol": 0.0, "atol": 1e-4}  # gradients in 16 bit
        for rank, result in enumerate(each[precision] for each in results):
            for name, expected in weights.items():
                torch.testing.assert_close(result["weights"][name], expected, msg=f"{name}, rank {rank}", **loose)
            for loaded in result.keys() & {"again", "anew"}:
                assert_same(result[loaded], result["weights"])
            assert_same(result["weights"], results[0][precision]["weights"])
            assert result["skipped"] == [precision == "fp16" and step in BAD for step in range(STEPS)]
            assert result["rates"] == [pytest.approx(each) for each in rates]
            assert result["replicas"] == (kind != "fsdp2")
            assert result["sharded"] == (len(weights) if kind == "fsdp2" else 0)


def assert_same(weights: dict[str, Any], expected: dict[str, Any]) -> None:
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name
