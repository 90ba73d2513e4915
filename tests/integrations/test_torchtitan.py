"""Orthon's optimizers in torchtitan: its own trainer with its debug model on CPUs, and the parts one by one."""

import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import orthon
from tests.integrations.support.processes import launch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch compiles while torchtitan is imported, and warns of its own parts
    from torchtitan.components.lr_scheduler import LRSchedulersContainer
    from torchtitan.components.optimizer import build_optimizers, build_optimizers_with_moe_load_balancing
    from torchtitan.config import ConfigManager
    from torchtitan.config import Optimizer as TitansOptimizer

    from orthon.integrations.torchtitan import OptimizersBuilder, train_spec
    from orthon.integrations.torchtitan_config import OPTIONS, Optimizer

CLASSES = [orthon.Dion, orthon.Muon, orthon.NorMuon, orthon.Dion2, orthon.Dion3]
FSDP = ("--parallelism.data_parallel_shard_degree=2",)
DDP = ("--parallelism.data_parallel_shard_degree=1", "--parallelism.data_parallel_replicate_degree=2")
STAGES = ("--parallelism.pipeline_parallel_degree=2", "--parallelism.pipeline_parallel_schedule=Interleaved1F1B")
TENSOR = ("--parallelism.tensor_parallel_degree=2",)
FROM_2 = "--checkpoint.load_step=2"
ALONE = SimpleNamespace(dp_replicate_enabled=False, fsdp_enabled=False, pp_enabled=False, ep_enabled=False)


def torchtitan(folder: Path, ranks: int, *arguments: str) -> list[Any]:
    """Train by torchtitan's trainer, and return what each process has in the end."""
    said = launch("torchtitan_run", f"--job.dump_folder={folder}", *arguments, processes=ranks)
    found = [json.loads(line.partition("RESULT ")[2]) for line in said.splitlines() if "RESULT " in line]
    assert len(found) == ranks
    return sorted(found, key=lambda result: result["rank"])


def test_sharded_and_resumed_with_replicas(tmp_path: Path) -> None:
    """FSDP2 on two processes, saved by DCP after two of four steps; then DistributedDataParallel goes on from there."""
    sharded = torchtitan(tmp_path, 2, *FSDP)
    names = [[name, algorithm, count] for name, algorithm, _, count in sharded[0]["groups"][0]]
    assert names == [
        ["hidden matrices", "dion", 42], ["embeddings", "adamw", 1], ["norms and biases", "adamw", 13],
        ["output head", "adamw", 1],
    ]  # fmt: skip
    assert {key.split(".")[0] for key in sharded[0]["keys"]} == {"state", "param_groups"}
    assert "state.layers.0.attention.wq.weight.momentum" in sharded[0]["keys"]
    assert [lr for _, lr in sharded[0]["logged"].values()] == pytest.approx([0.01, 0.02, 0.02, 0.01])  # the matrices'
    resumed = torchtitan(tmp_path, 2, *DDP, FROM_2)
    assert [result["replicas"] for result in resumed] == [[2], [2]]
    assert list(resumed[0]["logged"]) == ["3", "4"]
    for step, logged in resumed[0]["logged"].items():
        assert logged == pytest.approx(sharded[0]["logged"][step], rel=1e-5)
    whole = {name: sum(result["weights"][name] for result in sharded) for name in sharded[0]["weights"]}
    for name, total in resumed[0]["weights"].items():
        if "freqs_cis" not in name:
            assert total == pytest.approx(whole[name], rel=1e-4), name


def test_stages_and_resumed_in_tensor_parallel(tmp_path: Path) -> None:
    """A pipeline with two parts of the model on each of two processes; resumed the same way, and by tensor parallel."""
    first = torchtitan(tmp_path, 2, *STAGES)
    groups = [[group[:3] for group in part] for result in first for part in result["groups"]]
    assert len(groups) == 4
    assert all(part == groups[0] for part in groups)
    assert [group[0] for group in groups[0]] == ["hidden matrices", "embeddings", "norms and biases", "output head"]
    again = torchtitan(tmp_path, 2, *STAGES, FROM_2)
    for before, after in zip(first, again, strict=True):
        assert after["logged"] == {step: before["logged"][step] for step in ("3", "4")}
        assert after["weights"] == before["weights"]
        assert after["groups"] == before["groups"]
    for result in torchtitan(tmp_path, 2, *TENSOR, FROM_2):
        for step, logged in result["logged"].items():
            assert logged == pytest.approx(first[1]["logged"][step], rel=1e-5)  # the process that has the last stage
        assert result["keys"] == sorted({key for each in first for key in each["keys"]})


class Part(nn.Module):
    """A part of a model, with the names that it has in the whole."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def parts() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        Part(tok_embeddings=nn.Embedding(9, 6), first=nn.Linear(6, 6, bias=False)),
        Part(conv=nn.Conv1d(6, 6, 3), norm=nn.LayerNorm(6)),
        Part(last=nn.Linear(6, 6, bias=False), output=nn.Linear(6, 9, bias=False)),
    ]


def built(config: Any, model: list[nn.Module] | None = None, dims: Any = ALONE, **options: Any) -> Any:
    return OptimizersBuilder(build_optimizers, options)(model or parts(), config, dims)


def step(container: Any, seed: int) -> None:
    for part in container.model_parts:
        for name, param in part.named_parameters():
            generator = torch.Generator().manual_seed(seed + len(name))
            param.grad = torch.randn(param.shape, generator=generator)
    container.step()
    container.zero_grad()


def test_several_parts_have_the_same_groups_and_schedules() -> None:
    config = Optimizer(lr=0.5, scalar_lr_ratio=0.5)
    container, other = built(config), built(config)
    schedules = [LRSchedulersContainer(each, lambda t: 1 / (1 + t)) for each in (container, other)]
    rates = [[(group["name"], group["lr"]) for group in optimizer.param_groups] for optimizer in container]
    assert rates[0] == rates[1] == rates[2]
    assert rates[0][:2] == [("convolutions", 0.5), ("hidden matrices", 0.5)]
    assert {rate for _, rate in rates[0][2:]} == {0.25}
    for seed in range(3):
        step(container, seed)
        schedules[0].step()
    saved = container.state_dict()
    assert "param_groups.conv.weight.lr" in saved
    for mine, theirs in zip(container.model_parts, other.model_parts, strict=True):
        theirs.load_state_dict(mine.state_dict())
    step(other, 7)
    other.load_state_dict(saved)
    schedules[1].load_state_dict(schedules[0].state_dict())
    for seed in range(3, 6):
        for each, schedule in zip((container, other), schedules, strict=True):
            step(each, seed)
            schedule.step()
    for mine, theirs in zip(container, other, strict=True):
        assert [g["lr"] for g in mine.param_groups] == [g["lr"] for g in theirs.param_groups]


def test_a_part_goes_on_with_the_same_bits() -> None:
    container, other = built(Optimizer()), built(Optimizer())
    step(container, 0)
    for mine, theirs in zip(container.model_parts, other.model_parts, strict=True):
        theirs.load_state_dict(mine.state_dict())
    other.load_state_dict(container.state_dict())
    step(container, 1)
    step(other, 1)
    for mine, theirs in zip(container.model_parts, other.model_parts, strict=True):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_config_says_all_that_a_file_can() -> None:
    config = Optimizer(
        name="Muon", lr=0.5, scalar_lr=0.25, weight_decay=0.125, beta2=0.5, eps=1e-4, state_dtype="bfloat16",
        polar="newton_schulz", implementation="for-loop",
    )  # fmt: skip
    optimizer = built(config).optimizers[0]
    assert type(optimizer) is orthon.Muon
    hidden = optimizer.param_groups[0]
    expected = {"lr": 0.5, "weight_decay": 0.125, "state_dtype": torch.bfloat16, "polar": "newton_schulz"}
    assert {name: hidden[name] for name in expected} == expected
    (rest,) = [group for group in optimizer.param_groups if group["name"] == "embeddings"]
    expected = {"lr": 0.25, "betas": (0.9, 0.5), "eps": 1e-4, "weight_decay": 0.0, "fused": False, "foreach": False}
    assert {name: rest[name] for name in expected} == expected
    default = built(Optimizer()).optimizers[0]
    plain = orthon.Dion.for_model(parts()[0], fused=True, foreach=False)
    assert {group["name"]: group["lr"] for group in plain.param_groups}.items() <= {
        group["name"]: group["lr"] for group in default.param_groups
    }.items()
    takes = {name for make in CLASSES for name in inspect.signature(make).parameters} - {"params"}
    assert takes - set(OPTIONS) == {
        "lr", "weight_decay", "betas", "beta2", "eps", "foreach", "fused",  # torchtitan's own fields
        "view", "replicas", "sync_gradients", "others", "capturable",  # what no file can hold, or no run needs
    }  # fmt: skip


def test_torchtitans_own_config_and_own_optimizers() -> None:
    hidden = built(TitansOptimizer(name="dion", lr=0.5)).optimizers[0].param_groups[0]
    assert (hidden["lr"], hidden["weight_decay"]) == (0.5, 0.1)
    for config in (TitansOptimizer(), Optimizer(name="AdamW")):
        container = built(config)
        assert type(container.optimizers[0]) is torch.optim.AdamW
        assert container.optimizers[0].defaults["lr"] == TitansOptimizer().lr


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        '[job]\ncustom_config_module = "orthon.integrations.torchtitan_config"\n[optimizer]\nname = "dion"\nlr = 0.02\n'
    )
    config = ConfigManager().parse_args([f"--job.config_file={path}", "--optimizer.rank_fraction=0.125"])
    assert (config.optimizer.lr, config.optimizer.rank_fraction, config.optimizer.tail) == (0.02, 0.125, None)
    group = built(config.optimizer).optimizers[0].param_groups[0]
    assert (group["lr"], group["rank_fraction"]) == (0.02, 0.125)
    with pytest.raises(SystemExit):
        ConfigManager().parse_args([f"--job.config_file={path}", "--optimizer.rank_frac=0.125"])


# The section; the options and learning rate of the first group; the rule and learning rate of the embeddings.
MEANT: list[tuple[dict[str, Any], dict[str, Any], tuple[str, float]]] = [
    ({"name": "lion"}, {"algorithm": "lion", "lr": 3e-4, "betas": (0.9, 0.95)}, ("lion", 3e-4)),
    ({"name": "adamw"}, {"algorithm": "adamw", "lr": 3e-3}, ("adamw", 3e-3)),
    ({"name": "adamw", "lr": 1e-3}, {"algorithm": "adamw", "lr": 1e-3}, ("adamw", 1e-3)),
    ({"name": "adamw", "lr": 1e-3, "scalar_lr": 1e-4}, {"lr": 1e-3}, ("adamw", 1e-4)),
    ({"name": "lion", "scalar_algorithm": "AdamW"}, {"algorithm": "lion", "lr": 3e-4}, ("adamw", 3e-3)),
    ({"scalar_algorithm": "Lion", "beta1": 0.8}, {"algorithm": "dion", "lr": 0.01}, ("lion", 3e-4)),
    ({"precision": "float32"}, {"precision": "float32"}, ("adamw", 3e-3)),
    ({"state_dtype": "float64"}, {"state_dtype": torch.float64}, ("adamw", 3e-3)),
    ({"product_dtype": "torch.bfloat16"}, {"product_dtype": torch.bfloat16}, ("adamw", 3e-3)),
    ({"name": "muon", "polar_dtype": "float32"}, {"polar_dtype": torch.float32}, ("adamw", 3e-3)),
]


@pytest.mark.parametrize(("said", "first", "embeddings"), MEANT)
def test_what_a_section_means(said: dict[str, Any], first: dict[str, Any], embeddings: tuple[str, float]) -> None:
    (optimizer, *_) = built(Optimizer(**said), parts()[:1]).optimizers
    found = optimizer.param_groups[0]
    assert {name: found[name] for name in first} == first
    (group,) = [group for group in optimizer.param_groups if group["param_names"] == ["tok_embeddings.weight"]]
    assert (group["algorithm"], group["lr"]) == embeddings
    assert found["lr"] == first.get("lr", 0.01)  # the first is what torchtitan logs


SCALAR = "optimizer.scalar_algorithm should be one of 'adamw', 'lion', but is "

REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (Optimizer(early_step_in_backward=True), {}, ValueError, "optimizer.early_step_in_backward should be false"),
    (Optimizer(name="Dino"), {}, ValueError, "^optimizer.name should be .* but is 'Dino' .did you mean 'dion'"),
    (TitansOptimizer(name="Dino"), {}, ValueError, "^optimizer.name should be .* but is 'Dino' .did you mean 'dion'"),
    (Optimizer(scalar_algorithm="foo"), {}, ValueError, f"^{SCALAR}'foo'"),
    (Optimizer(scalar_algorithm="dion"), {}, ValueError, f"^{SCALAR}'dion'"),
    (Optimizer(state_dtype="float8"), {}, ValueError, "state_dtype should be None or one of torch.float64, .*'float8'"),
    (Optimizer(name="muon", rank_fraction=0.5), {}, TypeError, r"'rank_fraction' \(an option of dion\)"),
    (Optimizer(name="AdamW", rank_fraction=0.5), {}, ValueError, "'AdamW', torchtitan's own, .* 'rank_fraction'"),
    (TitansOptimizer(), {"rank_fraction": 0.5}, ValueError, "'AdamW', torchtitan's own, .* rank_fraction"),
    (Optimizer(), {"rank_frac": 0.5}, TypeError, r"'rank_frac' \(did you mean 'rank_fraction'"),
    (Optimizer(lr=-1.0), {}, ValueError, "lr should be"),
]


@pytest.mark.parametrize(("config", "options", "error", "message"), REFUSED)
def test_what_is_refused(config: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        built(config, **options)


def test_fault_tolerance_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"fault_tolerance.enable should be false"):
        OptimizersBuilder(build_optimizers)(parts(), Optimizer(), ALONE, SimpleNamespace(enabled=True))


def test_options_of_the_spec_precede_the_config() -> None:
    spec = train_spec("llama3", overrides={"first.*": {"rank_fraction": 1.0}}, rank_fraction=0.5)
    groups = spec.build_optimizers_fn(parts()[:1], Optimizer(rank_fraction=0.25), ALONE).optimizers[0].param_groups
    assert [(g["param_names"], g["rank_fraction"]) for g in groups if g["algorithm"] == "dion"] == [
        (["first.weight"], 1.0)
    ]
    spec = train_spec("llama3", rank_fraction=0.5)
    groups = spec.build_optimizers_fn(parts()[:1], Optimizer(rank_fraction=0.25), ALONE).optimizers[0].param_groups
    assert groups[0]["rank_fraction"] == 0.5


class Experts(nn.Module):
    """What torchtitan's balance of experts reads of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.load_balance_coeff = 1e-3
        self.register_buffer("tokens_per_expert", torch.tensor([1.0, 3.0]))
        self.register_buffer("expert_bias", torch.zeros(2))


def test_the_balance_of_experts_is_kept_before_every_step() -> None:
    layer = Part(moe=Experts(), weight=nn.Linear(6, 6))
    layer.moe_enabled = True
    layers = nn.ModuleDict({"0": layer})
    dims = SimpleNamespace(**vars(ALONE), get_optional_mesh=lambda _: None)
    container = OptimizersBuilder(build_optimizers_with_moe_load_balancing)([Part(layers=layers)], Optimizer(), dims)
    step(container, 0)
    torch.testing.assert_close(layer.moe.expert_bias, torch.tensor([1e-3, -1e-3]))
    assert (layer.moe.tokens_per_expert == 0).all()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_processes_of_ddp_are_replicas() -> None:
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("dp_replicate",))
    dims = SimpleNamespace(**vars(ALONE) | {"dp_replicate_enabled": True}, get_mesh=lambda _: mesh)
    assert all(optimizer._replicas is mesh.get_group() for optimizer in built(Optimizer(), dims=dims))
    dims.fsdp_enabled = True  # then the parameters' own mesh tells
    assert all(optimizer._replicas is None for optimizer in built(Optimizer(), dims=dims))
