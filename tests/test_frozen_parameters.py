"""Parameters that were frozen when the optimizer was made: a warning if they train later, and the ways out."""

import copy
import gc
import pickle
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BackboneFinetuning, BaseFinetuning
from torch import nn

import orthon
from orthon import Dion, MixedOptimizer, explain

MESSAGE = "Dion: '0.weight', '0.bias' have gradients, but were frozen when the optimizer was made.*add_param_group"


def net(*, frozen: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(not frozen)
    return model


def step(model: nn.Module, optimizer: MixedOptimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()


def test_a_warning_once() -> None:
    model = net()
    optimizer = Dion.for_model(model)
    step(model, optimizer)
    model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        step(model, optimizer)
    assert caught[0].filename == __file__, "it points to the line that calls step()"
    step(model, optimizer)


@pytest.mark.parametrize("way", ["added", "anew", "before", "another optimizer"])
def test_the_ways_out_bring_none(way: str) -> None:
    model = net(frozen=way != "before")
    optimizer = Dion.for_model(model)
    model[0].requires_grad_(True)
    if way == "added":
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
    elif way == "anew":
        optimizer = Dion.for_model(model)
    elif way == "another optimizer":
        optimizer = Dion(model.named_parameters(), others="adamw")
    before = model[0].weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model[0].weight, before)


def test_a_frozen_parameter_that_is_replaced() -> None:
    """As `fully_shard` does."""
    model = net()
    optimizer = Dion.for_model(model)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.warns(UserWarning, match="Dion: '0.weight' has a gradient"):
        step(model, optimizer)


def test_a_gradient_from_before_is_none() -> None:
    model = net(frozen=False)
    model(torch.randn(5, 6)).sum().backward()
    model[0].requires_grad_(False)
    step(model, Dion.for_model(model))


def test_it_keeps_nothing_alive_and_changes_no_state() -> None:
    model = net()
    optimizer = Dion.for_model(model)
    plain = Dion(orthon.param_groups(model))
    step(model, optimizer)
    step(model, plain)
    assert optimizer.state_dict().keys() == plain.state_dict().keys()
    assert optimizer.state_dict()["param_groups"] == plain.state_dict()["param_groups"]
    assert not any(map(weakref.getweakrefs, model.parameters())), "Module.to swaps DTensors, and those without alone"
    frozen = weakref.ref(model[0].weight)
    model[0] = nn.Linear(6, 8)
    gc.collect()
    assert frozen() is None
    step(model, optimizer)
    again, others = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    for of_copy, its in (again, others):
        of_copy[0].requires_grad_(True)
        step(of_copy, its)


def test_one_frozen_parameter_and_many() -> None:
    model = net()
    model[0].bias.requires_grad_(True)
    optimizer = Dion.for_model(model)
    model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match="Dion: '0.weight' has a gradient, but was frozen"):
        step(model, optimizer)
    deep = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(6)]).requires_grad_(False)
    deep[5].requires_grad_(True)
    optimizer = Dion.for_model(deep, overrides={"*": {"algorithm": "dion"}})
    deep.requires_grad_(True)
    with pytest.warns(UserWarning, match="'0.weight', '1.weight', '2.weight' and 2 more have gradients"):
        step(deep, optimizer)


# Groups that are added as Lightning does: plain parameters, perhaps with a learning rate.


def test_an_added_group_of_plain_parameters() -> None:
    model = net()
    optimizer = Dion.for_model(model)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 1e-3})
    group = optimizer.param_groups[-1]
    assert (group["param_names"], group["lr"], group["others"]) == (["0.weight", "0.bias"], 1e-3, "adamw")
    rows = {row.parameter: row.rule for row in explain(optimizer).rows}
    assert (rows["0.weight"], rows["0.bias"]) == ("dion", "adamw")
    step(model, optimizer)
    other = net()
    again = Dion.for_model(other)
    again.add_param_group({"params": list(other[0].parameters())})
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[-1]["lr"] == 1e-3


def test_an_added_group_of_matrices_has_no_others() -> None:
    model = net()
    optimizer = Dion.for_model(model, scalar_algorithm="lion")
    optimizer.add_param_group({"params": model[0].weight})
    optimizer.add_param_group({"params": model[0].bias, "algorithm": "adamw"})
    assert ["others" in group for group in optimizer.param_groups] == [False] * len(optimizer.param_groups)
    model = net()
    optimizer = Dion.for_model(model, scalar_algorithm="lion")
    optimizer.add_param_group({"params": model[0].parameters()})
    assert optimizer.param_groups[-1]["others"] == "lion"


def test_groups_where_all_was_frozen() -> None:
    model = net().requires_grad_(False)
    with pytest.warns(UserWarning, match="nothing to train"):
        optimizer = Dion.for_model(model)
    model.requires_grad_(True)
    optimizer.add_param_group({"params": model[2].parameters()})
    optimizer.add_param_group({"params": model[4].parameters()})
    assert [group["param_names"] for group in optimizer.param_groups] == [
        [],
        ["2.weight", "2.bias"],
        ["4.weight", "4.bias"],
    ]


def test_names_in_some_groups_alone() -> None:
    stranger = nn.Parameter(torch.ones(3, 3))
    for optimizer in (Dion.for_model(net()), Dion(net().named_parameters(), others="adamw")):
        with pytest.raises(ValueError, match="Dion: param group .*: its parameters have no names, but those of other"):
            optimizer.add_param_group({"params": [stranger], "name": "mine"})
    with pytest.raises(ValueError, match="Dion: param group 'mine': its parameters have names, but those of other"):
        Dion(net().parameters(), others="adamw").add_param_group({"params": [("s", stranger)], "name": "mine"})
    copied = copy.deepcopy(Dion.for_model(net()))
    with pytest.raises(ValueError, match="no names.*give \\(name, tensor\\) pairs"):
        copied.add_param_group({"params": [stranger]})
    copied.add_param_group({"params": [("s", stranger)]})


class Finetuned(LightningModule):
    """A backbone that a callback unfreezes, and a head."""

    def __init__(self, *, by_for_model: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.by_for_model = by_for_model

    def training_step(self, x: Any) -> Any:
        return self.head(self.middle(self.backbone(x))).square().mean()

    def configure_optimizers(self) -> Any:
        if self.by_for_model:
            return Dion.for_model(self)
        return Dion((p for p in self.parameters() if p.requires_grad), others="adamw")


class Unfreeze(BaseFinetuning):
    """As in Lightning's documentation."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_for_model", [True, False])
@pytest.mark.parametrize("callback", [Unfreeze, lambda: BackboneFinetuning(1, backbone_initial_lr=1e-3)])
def test_callbacks_of_lightning(callback: Any, by_for_model: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Finetuned(by_for_model=by_for_model)
    start = copy.deepcopy(module.backbone)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback()], default_root_dir=tmp_path, enable_checkpointing=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*frozen.*", category=UserWarning)
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(16, 6), batch_size=4))
    optimizer = trainer.optimizers[0]
    assert len(optimizer.param_groups[-1]["params"]) == 6
    for before, after in zip(start.parameters(), module.backbone.parameters(), strict=True):
        assert not torch.equal(before, after)
