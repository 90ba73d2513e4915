"""Options that a saved state lacks, as it is older than they are, and those that do not go together."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon.optimizers.common import NamedOptimizer
from tests.test_checkpoint_readers import load, save

# Options of the optimizer that loads a state without the first of them, and what it has then.
LACKING: list[tuple[str, dict[str, Any], object]] = [
    ("dion", {"tail": 0.5}, 0.0),
    ("dion", {"residual_momentum": 0.5, "nesterov": False}, 1.0),
    ("dion", {"nesterov": True}, False),
    ("dion", {"momentum": 0.5}, 0.5),
    ("dion2", {"selection_side": "rows"}, "short"),
    ("dion3", {"selection_side": "rows"}, "short"),
    ("muon", {"nesterov": True}, True),
    ("normuon", {"nesterov": True}, True),
    ("normuon", {"nesterov": False}, False),
]


def stepped(rule: str, **options: Any) -> tuple[nn.Module, NamedOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 4))
    optimizer = orthon.create(rule, model, **options)
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(("rule", "own", "expected"), LACKING)
@pytest.mark.parametrize("way", ["in memory", "nested", "flat"])
def test_an_option_that_the_state_lacks(
    tmp_path: Path, rule: str, own: dict[str, Any], expected: object, way: str
) -> None:
    """It remains, but for one without which the rule was another before it existed."""
    option, others = next(iter(own)), dict(list(own.items())[1:])
    model, optimizer = stepped(rule, **others)
    for group in optimizer.param_groups:
        group.pop(option, None)
    other, loaded = stepped(rule, **own)
    if way == "in memory":
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        save(tmp_path / "checkpoint", model, optimizer, flat=way == "flat")  # type: ignore[arg-type]
        load(tmp_path / "checkpoint", other, loaded, flat=way == "flat")  # type: ignore[arg-type]
    assert loaded.param_groups[0]["algorithm"] == rule
    assert loaded.param_groups[0][option] == expected
    loaded.step()


@pytest.mark.parametrize("residual", [{"residual_momentum": 1.0}, {}])
def test_options_that_do_not_go_together(residual: dict[str, float]) -> None:
    """What the next step would refuse is refused at once, and nothing has changed."""
    _, optimizer = stepped("dion")
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    del state["param_groups"][0]["residual_momentum"]
    state["param_groups"][0] |= {**residual, "lr": 7.0}
    message = r"loading a state: param group .* nesterov should be False with residual_momentum=1\.0"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    optimizer.step()
