"""Orthon's optimizers in Lightning's Trainer: on several processes, by the command line, with averaged weights."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from tests.integrations.support.processes import launch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.callbacks import LearningRateMonitor, StochasticWeightAveraging
    from pytorch_lightning.cli import LightningCLI
    from pytorch_lightning.loggers import CSVLogger

    from tests.integrations.lightning_run import BATCHES, EPOCHS, SIZE, net, rows

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.mark.parametrize("strategy", ["ddp", "model_parallel"])
def test_two_processes_do_the_steps_of_one(strategy: str, tmp_path: Path) -> None:
    said = launch("lightning_run", strategy, str(tmp_path))
    found = [json.loads(line.partition("RESULT ")[2]) for line in said.splitlines() if "RESULT " in line]
    assert len(found) == 2
    model = nn.Module()
    model.net = net()  # its parameters have the names that they have in a LightningModule; random numbers follow these
    optimizer = orthon.Dion.for_model(model, lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(EPOCHS):
        for batch in range(BATCHES):
            optimizer.zero_grad()
            own = [rows()[rank::2][SIZE * batch : SIZE * (batch + 1)] for rank in range(2)]
            model.net(torch.cat(own)).square().mean().backward()
            optimizer.step()
        schedule.step()
    for first, resumed in found:
        assert first == {**resumed, "steps": first["steps"]}
        assert first["steps"] == EPOCHS * BATCHES
        assert set(first["ranks"]) == {2}
        assert set(first["replicas"]) == ({2} if strategy == "ddp" else {1})
        assert first["lr"] == [group["lr"] for group in optimizer.param_groups]
        for name, value in model.net.named_parameters():
            torch.testing.assert_close(torch.tensor(first["weights"][name]), value.detach(), rtol=1e-4, atol=1e-5)


class Chosen(LightningModule):
    """Takes the name of a rule and options for it.

    Args:
        rule: of the optimizer.
        lr: learning rate of the hidden matrices.
        options: further ones.
    """

    def __init__(self, rule: str = "dion", lr: float = 0.02, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.net, self.rule, self.lr, self.options = net(), rule, lr, options or {}
        self.losses: list[float] = []

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.net(batch).square().mean()
        self.losses.append(loss.item())
        return loss

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(rows(), batch_size=SIZE)

    def configure_optimizers(self) -> Any:
        return orthon.create(self.rule, self, lr=self.lr, **self.options)


class Plain(Chosen):
    """Leaves its optimizer to the command line."""

    configure_optimizers = LightningModule.configure_optimizers  # type: ignore[assignment]


def from_yaml(kind: type[LightningModule], text: str, tmp_path: Path, *words: str) -> Any:
    """Return the model after a run by LightningCLI."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    trainer = {**QUIET, "max_epochs": 2, "default_root_dir": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["program", "fit", "--config", str(path), *words])
        return LightningCLI(kind, trainer_defaults=trainer, save_config_callback=None, seed_everything_default=0).model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_line_takes_a_rule_and_its_options_from_yaml(tmp_path: Path) -> None:
    text = "model:\n  rule: dion\n  lr: 0.05\n  options:\n    rank_fraction: 0.5\n    scalar_lr_ratio: 0.1\n"
    module = from_yaml(Chosen, text, tmp_path)
    optimizer = module.optimizers()
    assert isinstance(optimizer, orthon.Dion)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.005, 0.005])
    assert optimizer.param_groups[0]["rank_fraction"] == 0.5
    assert module.losses[-1] < module.losses[0]
    module = from_yaml(Chosen, f"{text}    state_dtype: bfloat16\n    product_dtype: torch.bfloat16\n", tmp_path)
    group = module.optimizers().param_groups[0]
    assert (group["state_dtype"], group["product_dtype"]) == (torch.bfloat16, torch.bfloat16)
    module = from_yaml(Chosen, text, tmp_path, "--model.rule=muon", "--model.options={polar_steps: 6}")
    assert isinstance(module.optimizers(), orthon.Muon)
    assert module.optimizers().param_groups[0]["polar_steps"] == 6
    with pytest.raises(TypeError, match="did you mean 'rank_fraction'"):
        from_yaml(Chosen, text, tmp_path, "--model.options={rank_frac: 0.5}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_line_makes_an_optimizer_of_all_parameters(tmp_path: Path) -> None:
    """Then a class gets them without names and modules, and `others` is for those that are no matrices."""
    text = "optimizer:\n  class_path: orthon.Dion\n  init_args: {lr: 0.02, rank_fraction: 0.5, others: adamw}\n"
    module = from_yaml(Plain, text, tmp_path)
    (group,) = module.optimizers().param_groups
    assert (group["lr"], group["rank_fraction"], group["others"]) == (0.02, 0.5, "adamw")
    assert module.losses[-1] < module.losses[0]
    with pytest.raises(SystemExit):
        from_yaml(Plain, text.replace("rank_fraction", "rank_frac"), tmp_path)


def test_averaged_weights_with_a_learning_rate_for_each_group(tmp_path: Path) -> None:
    module = Chosen(lr=0.05)
    rates = [0.02, 0.001, 0.001]
    average = StochasticWeightAveraging(
        swa_lrs=rates, swa_epoch_start=1, annealing_epochs=1, annealing_strategy="linear"
    )
    monitor = LearningRateMonitor("epoch")
    options = {**QUIET, "max_epochs": 6, "default_root_dir": tmp_path, "logger": CSVLogger(tmp_path)}
    seen: list[list[Tensor]] = []
    module.on_train_epoch_start = lambda: seen.append([p.detach().clone() for p in module.parameters()])
    Trainer(**options, callbacks=[average, monitor], log_every_n_steps=1, gradient_clip_val=1.0).fit(module)
    optimizer = module.optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)
    assert set(monitor.lrs) == {f"lr-Dion/{group['name']}" for group in optimizer.param_groups}
    for index, param in enumerate(module.parameters()):
        expected = torch.stack([weights[index] for weights in seen]).mean(0)
        torch.testing.assert_close(param.detach(), expected)
    assert module.losses[-1] < module.losses[0]
