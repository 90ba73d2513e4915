"""Orthon's optimizers in Lightning's Trainer and in Fabric, by the packages themselves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon import Dion, Dion3, MixedOptimizer, Muon, explain

pytest.importorskip("pytorch_lightning")

from lightning_fabric import Fabric
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*all param groups have the learning rate"),  # OneCycleLR with one max_lr
]

MAKERS = [Dion, Muon, Dion3]
EPOCHS, BATCHES = 4, 2
CLIP = 1e-3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().square().mean()


def data() -> torch.utils.data.DataLoader[Tensor]:
    x = torch.randn(4 * BATCHES, 6, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(x, batch_size=4)


def named(model: nn.Module) -> nn.Module:
    """Return a model in which the parameters have the names that they have in `Module`; random numbers follow these."""
    around = nn.Module()
    around.net = model
    return around


def clip(optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_([param for group in optimizer.param_groups for param in group["params"]], CLIP)


class Module(LightningModule):
    """Trains a net. Its loss is infinite in the step `bad`, if that is not None."""

    def __init__(self, make: Any = Dion, bad: int | None = None, schedule: Any = None) -> None:
        super().__init__()
        self.net = net()
        self.make, self.bad, self.steps, self.schedule = make, bad, 0, schedule
        self.outer: Any = None

    def training_step(self, batch: Tensor) -> Tensor:
        self.steps += 1
        return loss_of(self.net, batch) * (float("inf") if self.steps - 1 == self.bad else 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = self.make.for_model(self)
        assert [g["name"] for g in optimizer.param_groups] == ["hidden matrices", "norms and biases", "output head"]
        if self.schedule is not None:
            return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]
        return optimizer

    def on_train_end(self) -> None:
        self.outer = self.optimizers()


def trainer(root: Path, **options: Any) -> Trainer:
    usual = {
        "max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": root,
    }  # fmt: skip
    return Trainer(**(usual | options))


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    for (name, value), right in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, right), name


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * BATCHES + 1)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_trainer_does_the_steps_of_a_plain_loop(make: Any, precision: str, tmp_path: Path) -> None:
    module, model = Module(make, schedule=halved), net()
    trainer(tmp_path, precision=precision, gradient_clip_val=CLIP).fit(module, data())
    optimizer = make.for_model(named(model))
    schedule = halved(optimizer)
    for _ in range(EPOCHS):
        for batch in data():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
                loss = loss_of(model, batch)
            loss.backward()
            clip(optimizer)
            optimizer.step()
            schedule.step()
    assert_same(module.net, model)
    assert isinstance(module.outer, LightningOptimizer)
    assert explain(module.outer) == explain(module.outer.optimizer)
    assert orthon.skipped_steps(module.outer) == module.outer.skipped_steps == 0


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("bad", [None, 3])
def test_float16_with_clipping(make: Any, bad: int | None, tmp_path: Path) -> None:
    """The Trainer takes no float16 on a CPU by its name, but by its plugin."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    module, model = Module(make, bad), net()
    trainer(tmp_path, plugins=[plugin], gradient_clip_val=CLIP).fit(module, data())
    optimizer, scale = make.for_model(named(model), nonfinite="skip"), 2.0**10
    for step, batch in enumerate([batch for _ in range(EPOCHS) for batch in data()]):
        if step == bad:
            scale /= 2
            continue
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, cache_enabled=False):
            loss = loss_of(model, batch)
        (loss * scale).backward()
        for param in model.parameters():
            param.grad /= scale
        clip(optimizer)
        optimizer.step()
    assert_same(module.net, model)
    assert orthon.skipped_steps(module.outer) == (bad is not None)
    assert scaler.get_scale() == scale


@pytest.mark.parametrize("schedule", [None, halved, one_cycle])
@pytest.mark.parametrize("make", MAKERS)
def test_a_run_resumed_from_a_checkpoint_ends_with_the_same_weights(make: Any, schedule: Any, tmp_path: Path) -> None:
    module = Module(make, schedule=schedule)
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, callbacks=[keep], enable_checkpointing=True).fit(module, data())
    for weights_only in (False, True):
        again = Module(make, schedule=schedule)
        with torch.no_grad():
            again.net[0].weight.zero_()
        trainer(tmp_path).fit(again, data(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=weights_only)
        assert again.steps == (EPOCHS - 2) * BATCHES
        assert_same(again.net, module.net)
        assert again.outer.state_dict()["param_groups"] == module.outer.state_dict()["param_groups"]


@pytest.mark.parametrize("schedule", [None, halved, one_cycle])
def test_the_learning_rates_that_it_logs(schedule: Any, tmp_path: Path) -> None:
    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    run = trainer(tmp_path, callbacks=[monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    module = Module(schedule=schedule)
    run.fit(module, data())
    groups = {f"lr-Dion/{group['name']}": group for group in module.outer.param_groups}
    assert set(monitor.lrs) == set(groups)
    assert all(len(rates) == EPOCHS * BATCHES for rates in monitor.lrs.values())
    first = module.make.for_model(net()).param_groups
    if schedule is not one_cycle:
        assert [rates[0] for rates in monitor.lrs.values()] == [group["lr"] for group in first]
    assert monitor.last_weight_decay_values == {f"{n}-weight_decay": g["weight_decay"] for n, g in groups.items()}
    assert set(monitor.last_momentum_values) == {f"{name}-momentum" for name in groups}
    assert monitor.last_momentum_values["lr-Dion/hidden matrices-momentum"] > 0
    if schedule is one_cycle:
        assert len(set(monitor.last_momentum_values.values())) == 1


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_goes_through_its_wrapper(make: Any) -> None:
    model, other = net(), net()
    optimizer, right = make.for_model(model, lr=0.25), make.for_model(other, lr=0.25)
    wrapped = LightningOptimizer(optimizer)
    steps(model, optimizer, 2)
    steps(other, right, 2)
    saved = copy.deepcopy(wrapped.state_dict())
    weights = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 3)
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    model.load_state_dict(weights)
    wrapped.load_state_dict(saved)
    assert wrapped.param_groups is optimizer.param_groups
    assert optimizer.param_groups[0]["lr"] == 0.25
    steps(model, optimizer, 2)
    steps(other, right, 2)
    assert_same(model, other)
    wrapped.add_param_group({"params": [("more", nn.Parameter(torch.ones(3, 3)))]})
    assert [group["params"] for group in optimizer.param_groups][-1][0].shape == (3, 3)


def steps(model: nn.Module, optimizer: MixedOptimizer, count: int) -> None:
    for step in range(count):
        optimizer.zero_grad()
        loss_of(model, torch.randn(5, 6, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str, tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model, other = net(), net()
    optimizer = Dion.for_model(model)
    expected = explain(optimizer)
    wrapped_model, wrapped = fabric.setup(model, optimizer)
    assert explain(wrapped) == expected
    assert explain(Dion.for_model(wrapped_model)) == expected
    right = Dion.for_model(other)

    def train(count: int) -> None:
        for batch in list(data())[:count]:
            wrapped.zero_grad()
            fabric.backward(loss_of(wrapped_model, batch))
            fabric.clip_gradients(wrapped_model, wrapped, max_norm=CLIP)
            wrapped.step()

    train(2)
    for batch in data():
        right.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
            output = other(batch)
        output.float().square().mean().backward()
        clip(right)
        right.step()
    assert_same(model, other)
    fabric.save(tmp_path / "saved", {"model": wrapped_model, "optimizer": wrapped})
    train(2)
    ended = copy.deepcopy(model)
    fabric.load(tmp_path / "saved", {"model": wrapped_model, "optimizer": wrapped})
    assert_same(model, other)
    train(2)
    assert_same(model, ended)
    assert orthon.skipped_steps(wrapped) == 0
    wrapped.consolidate()
    orthon.consolidate(wrapped)
