"""The experts of torchtitan's own models: a matrix each, also where its trainer shards them."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import orthon
from tests.integrations.test_torchtitan import DDP, FROM_2, FSDP, Optimizer, built, torchtitan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchtitan.protocols.train_spec import get_train_spec


def test_experts_are_sharded_and_resumed_with_replicas(tmp_path: Path) -> None:
    """llama4's, which every second layer has, on two processes with FSDP2, and then with DistributedDataParallel."""
    llama4 = ("--model.name=llama4",)
    sharded = torchtitan(tmp_path, 2, *FSDP, *llama4)
    groups = {name: (algorithm, count) for name, algorithm, _, count in sharded[0]["groups"][0]}
    assert groups["experts"] == ("dion", 9)
    assert groups["routers"] == ("adamw", 3)
    for result in torchtitan(tmp_path, 2, *DDP, *llama4, FROM_2):
        for step, logged in result["logged"].items():
            assert logged == pytest.approx(sharded[0]["logged"][step], rel=1e-4)


def small(name: str, flavor: str) -> Any:
    """Return a small model of torchtitan's with experts."""
    spec = get_train_spec(name)
    args = replace(spec.model_args[flavor], n_layers=2, vocab_size=64)
    args.moe_args = replace(args.moe_args, use_grouped_mm=False)
    args.moe_impl = "standard"  # what the trainer adds
    return spec.model_cls(args).float()  # those of GPT-OSS would be of bfloat16


# Models with experts, a flavor of each, and its weights of experts: what comes in, and what goes out.
WITH_EXPERTS: list[tuple[str, str, set[str], str]] = [
    ("llama4", "debugmodel", {"w1", "w3"}, "w2"),
    ("qwen3", "debugmodel_moe", {"w1", "w3"}, "w2"),
    ("deepseek_v3", "debugmodel", {"w1", "w3"}, "w2"),
    ("gpt_oss", "debugmodel", {"mlp1_weight"}, "mlp2_weight"),
]


@pytest.mark.parametrize(("name", "flavor", "first", "last"), WITH_EXPERTS)
def test_each_expert_is_a_matrix(name: str, flavor: str, first: set[str], last: str) -> None:
    model = small(name, flavor)
    found: dict[str, Any] = {
        of.split(".experts.")[1]: group
        for group in built(Optimizer(), [model]).optimizers[0].param_groups
        for of in group["param_names"]
        if ".experts." in of
    }
    assert {of for of, group in found.items() if group["algorithm"] == "dion"} == first | {last}
    for weight in first | {last}:
        assert found[weight]["view"] == orthon.MatrixView()
    experts = next(module for path, module in model.named_modules() if path.endswith(".experts"))
    with torch.no_grad():
        for param in experts.parameters():
            param.normal_()
    # They are used as (out, in): of one number that comes out, one row has a gradient; what comes in are columns.
    dim, count = experts.get_parameter(last).shape[1], experts.num_experts
    out = experts(torch.randn(2 * count, dim), torch.full((count,), 2))
    out[:, 0].square().sum().backward()
    gradient = experts.get_parameter(last).grad
    assert gradient is not None
    assert (gradient[:, 0] != 0).any()
    assert (gradient[:, 1:] == 0).all()
    assert {experts.get_parameter(weight).shape[2] for weight in first} == {dim}
