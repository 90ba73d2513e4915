from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon.saving.convert import SOURCES
from orthon.train.commands.main import main


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[nn.Parameter]:
    """Write states after a step, and files that hold none; return the parameters, a matrix and a vector."""
    monkeypatch.chdir(tmp_path)
    params = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))]
    optimizers = torch.optim.Muon([("w", params[0])]), torch.optim.AdamW([("b", params[1])])
    for param, optimizer in zip(params, optimizers, strict=True):
        param.grad = torch.randn_like(param)
        optimizer.step()
    muon, adamw = (optimizer.state_dict() for optimizer in optimizers)
    torch.save(muon, "muon.pt")
    torch.save(adamw, "adamw.pt")
    torch.save({"model": {}, "optimizer": adamw}, "checkpoint.pt")
    torch.save({**adamw, "code": nn.Linear(1, 1)}, "code.pt")
    torch.save([1, 2], "list.pt")
    Path("text.pt").write_text("hello world")
    Path("empty.pt").touch()
    Path("taken.pt").write_text("mine")
    return params


def convert(words: str) -> int:
    return main(["convert", *words.split()])


def load(out: str, params: list[nn.Parameter]) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out, weights_only=True)
    groups = [{**group, "params": [params[i] for i in group["params"]]} for group in content["param_groups"]]
    orthon.MixedOptimizer(groups, algorithm="adamw", options={}).load_state_dict(content)
    return content


def test_two_files_become_one(files: list[nn.Parameter], capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("muon.pt adamw.pt --source torch-muon --source torch-adamw --out out.pt") == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["0", "muon", "1", "1", "muon.pt,", "group", "0"] in rows
    assert ["1", "adamw", "1", "1", "adamw.pt,", "group", "0"] in rows
    assert "group 0: adjust_lr_fn=original ema=True lr=0.001 momentum=0.95 nesterov=True polar=newton_schulz" in said
    assert "group 1, dropped (no effect, or always so in orthon): capturable, differentiable, decoupled" in said
    assert "note: their Newton-Schulz iteration runs in bfloat16" in said
    assert "wrote out.pt" in said
    assert said.endswith("make its group 0, of muon, with ema=True\n")
    assert [group["param_names"] for group in load("out.pt", files)["param_groups"]] == [["w"], ["b"]]
    assert not Path("out.pt.part").exists()


def test_names_with_brackets_and_keys_that_are_numbers(
    files: list[nn.Parameter], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("[b].pt").write_bytes(Path("adamw.pt").read_bytes())
    assert convert("[b].pt --source torch-adamw --out [red]:x:.pt") == 0
    said = capsys.readouterr().out
    assert "[b].pt, group 0" in said
    assert "wrote [red]:x:.pt;" in said
    torch.save({5: torch.load("adamw.pt")}, "numbered.pt")
    assert convert("numbered.pt --source torch-adamw --key 5 --out out.pt") == 0
    assert convert("numbered.pt --source torch-adamw --key 6 --out other.pt") == 2
    assert "has no key '6'; it has 5" in capsys.readouterr().err


def test_one_source_for_all_and_a_key(files: list[nn.Parameter]) -> None:
    assert convert("checkpoint.pt --source torch-adamw --key optimizer --out out.pt") == 0
    load("out.pt", files[1:])
    assert convert("muon.pt muon.pt --source torch-muon --out two.pt") == 2  # the same name twice


def test_help_lists_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--help") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(source in said for source in SOURCES)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("missing.pt --source torch-muon --out out.pt", "missing.pt: No such file or directory"),
        ("code.pt --source torch-adamw --out out.pt", "code.pt is refused: it is no file of torch.save with tensors"),
        ("text.pt --source torch-adamw --out out.pt", "text.pt is damaged, or no file of torch.save"),
        ("empty.pt --source torch-adamw --out out.pt", "empty.pt is damaged, or no file of torch.save"),
        ("list.pt --source torch-adamw --out out.pt", "list.pt (torch-adamw): should be an optimizer's state_dict()"),
        (
            "checkpoint.pt --source torch-adamw --out out.pt",
            "checkpoint.pt holds no optimizer's state_dict(); choose one of its keys by --key: model, optimizer",
        ),
        ("checkpoint.pt --source torch-adamw --key opt --out out.pt", "has no key 'opt'; it has model, optimizer"),
        ("list.pt --source torch-adamw --key opt --out out.pt", "has no key 'opt'; it has none, but is a list"),
        ("muon.pt --source adamw --out out.pt", f"source must be one of {', '.join(SOURCES)} but is 'adamw'"),
        ("muon.pt --source torch-muon --source torch-adamw --out out.pt", "once for each of 1 files, but is 2 times"),
        ("muon.pt --out out.pt", "but is 0 times"),
        ("--source torch-muon --out out.pt", "convert needs one or more files"),
        ("muon.pt --source torch-muon", "parameter --out requires an argument"),
        ("muon.pt --source torch-muon --out taken.pt", "taken.pt exists; choose another --out"),
        ("muon.pt --source torch-muon --out nowhere/out.pt", "nowhere/out.pt cannot be written"),
        ("muon.pt --source torch-adamw --out out.pt", "muon.pt (torch-adamw): param group 0: 'momentum' is 0.95"),
        ("muon.pt --source torch-muon --out out.pt --fast", "Unknown option: --fast"),
    ],
)
def test_errors(tmp_path: Path, fails, snapshot, words: str, message: str) -> None:
    before = snapshot(tmp_path)
    assert message in fails("convert", *words.split())
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("files")
def test_not_under_torchrun(monkeypatch: pytest.MonkeyPatch, fails) -> None:
    monkeypatch.setattr("orthon.train.commands.convert.processes", lambda: 2)
    assert "convert works in one process" in fails("convert", "muon.pt", "--source", "torch-muon", "--out", "out.pt")
