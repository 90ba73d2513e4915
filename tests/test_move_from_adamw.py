"""The way from torch.optim.AdamW in the middle of a run, as docs/move/adamw.md tells it."""

from typing import Any

import pytest
import torch

import orthon
from tests.support.doc_blocks import GIVEN, ROOT, blocks


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_the_way_from_adamw_that_a_page_tells(named: bool, divided: bool) -> None:
    """The state of what stays with AdamW comes along, whatever groups and names the other optimizer had."""
    page = ROOT / "docs" / "move" / "adamw.md"
    code = next(block.text for block in blocks(page) if "convert_state" in block.text)
    first, rest = code.split("\n", 1)
    assert first == "before = torch.optim.AdamW(model.parameters(), lr=3e-4)"
    model = GIVEN["model"]()
    groups = [[], []]  # type: list[list[Any]]
    for name, param in model.named_parameters():
        groups[divided and param.ndim < 2].append((name, param) if named else param)
    before = torch.optim.AdamW(
        [{"params": params, "weight_decay": 0.1 * i} for i, params in enumerate(groups) if params]
    )
    names = {"torch": torch, "orthon": orthon, "model": model, "data": GIVEN["data"](), "before": before}
    exec(rest, names)
    after: Any = names["after"]
    by_rule: dict[str, list[Any]] = {"adamw": [], "dion": []}
    for group in after.param_groups:
        by_rule[group["algorithm"]] += group["params"]
    assert not any(param in after.state for param in by_rule["dion"])
    assert by_rule["adamw"]
    for param in by_rule["adamw"]:
        assert torch.equal(after.state[param]["exp_avg_sq"], before.state[param]["exp_avg_sq"])
    model(GIVEN["data"]()[0]).backward()
    after.step()
