"""A run of torchtitan's own trainer with its debug model, on CPUs: `torchrun -m tests.integrations.torchtitan_run ...`.

torchtitan takes any kind of device that torch has, by two words: its name and the module `torch.<name>`. Here these are
"cpu" and `torch.cpu`, to which are added the figures about memory that a GPU would have. The data are random tokens.

The arguments are torchtitan's. Each process prints one line: the word RESULT and what it has in the end, as JSON.
"""
# ruff: noqa: E402

import dataclasses
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from torch.distributed.fsdp import FSDPModule

torch._utils._get_available_device_type = lambda: "cpu"
for _name, _value in {
    "get_device_name": lambda _: "CPU",
    "get_device_properties": lambda _: SimpleNamespace(total_memory=2**34),
    "reset_peak_memory_stats": lambda: None,
    "empty_cache": lambda: None,
    "memory_stats": lambda _: {},
}.items():
    setattr(torch.cpu, _name, _value)

import torchtitan.distributed.utils
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.config import ConfigManager
from torchtitan.protocols.train_spec import register_train_spec
from torchtitan.train import Trainer

from orthon.integrations.torchtitan import train_spec
from orthon.sharding import local
from tests.integrations.support.processes import end

_divide = FSDPModule.set_gradient_divide_factor


def _divide_after_the_sum(module: FSDPModule, factor: float) -> None:
    _divide(module, factor)
    module.set_force_sum_reduction_for_comms(True)  # gloo cannot divide while it sums


FSDPModule.set_gradient_divide_factor = _divide_after_the_sum
torchtitan.distributed.utils.set_pg_timeouts = lambda **_: None  # its barrier is one of NCCL

_histogram = torch.histc


def _histogram_of_integers(x: torch.Tensor, **given: Any) -> torch.Tensor:
    return _histogram(x.double(), **given).to(x.dtype)  # torch has none of integers on CPUs


torch.histc = _histogram_of_integers  # type: ignore[assignment]

SEQUENCE, BATCH = 32, 4
USUAL = [
    "--job.custom_config_module=orthon.integrations.torchtitan_config", "--model.name=llama3",
    "--model.flavor=debugmodel", f"--training.seq_len={SEQUENCE}", f"--training.local_batch_size={BATCH}",
    "--training.mixed_precision_param=float32", "--training.steps=4", "--lr_scheduler.warmup_steps=2",
    "--metrics.log_freq=1", "--debug.seed=0", "--checkpoint.enable", "--checkpoint.interval=2",
    "--checkpoint.keep_latest_k=0", "--optimizer.lr=0.02", "--optimizer.rank_fraction=0.25",
]  # fmt: skip


class RandomTokens(BaseDataLoader):
    """Batches of tokens that repeat after a while, so that there is something to learn."""

    def __init__(self, rank: int, vocabulary: int) -> None:
        self.rank, self.vocabulary, self.count = rank, vocabulary, 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            generator = torch.Generator().manual_seed(100 * self.rank + self.count)
            tokens = torch.randint(self.vocabulary, (BATCH, 8), generator=generator).repeat(1, SEQUENCE // 8 + 1)
            self.count += 1
            yield {"input": tokens[:, :SEQUENCE]}, tokens[:, 1 : SEQUENCE + 1]

    def state_dict(self) -> dict[str, Any]:
        return {f"count {self.rank}": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict.get(f"count {self.rank}", self.count)


def tokens(dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: Any) -> RandomTokens:
    return RandomTokens(dp_rank, 64)


def group_of(group: dict[str, Any]) -> list[Any]:
    return [group["name"], group["algorithm"], group["lr"], len(group["params"])]


def run(arguments: list[str]) -> dict[str, Any]:
    """Train, and return what was logged and what the process has in the end."""
    trainer = Trainer(ConfigManager().parse_args([*USUAL, *arguments]))
    logged: dict[int, list[float]] = {}

    def log(step: int, loss: float, _: float, norm: float, extra_metrics: dict[str, Any]) -> None:
        logged[step] = [loss, extra_metrics["lr"]]

    trainer.metrics_processor.log = log
    trainer.train()
    result = {
        "rank": torch.distributed.get_rank(),
        "logged": logged,
        "groups": [[group_of(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        "replicas": [None if o._replicas is None else o._replicas.size() for o in trainer.optimizers],
        "keys": sorted(trainer.optimizers.state_dict()),
        "weights": {
            name: local(value).abs().double().sum().item()
            for part in trainer.model_parts
            for name, value in part.state_dict().items()
        },
    }
    trainer.close()
    return result


def main() -> None:
    name = next((word.partition("=")[2] for word in sys.argv if word.startswith("--model.name=")), "llama3")
    spec = dataclasses.replace(train_spec(name), build_dataloader_fn=tokens, build_tokenizer_fn=None)
    for args in spec.model_args.values():
        if hasattr(args, "moe_args"):
            args.moe_args.use_grouped_mm = False  # a kernel of GPUs
    register_train_spec(name, spec)
    sys.stdout.write(f"RESULT {json.dumps(run(sys.argv[1:]))}\n")
    end()


if __name__ == "__main__":
    main()
