import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from orthon.train.commands import main as entry
from orthon.train.commands.main import main
from orthon.train.settings.file import read_config
from orthon.train.settings.optimizer import OptimizerName
from orthon.train.settings.run import TrainConfig


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("orthon 0")
    assert main(["train", "--help-all"]) == main(["compare", "--help-all"]) == 0
    said = capsys.readouterr().out
    assert "--optimizer.rank-fraction" in said
    assert "--optimizer.fraction" in said
    for name in get_args(OptimizerName):
        assert name in said
    assert "--sweep" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--steps 0", "orthon: steps must be greater than or equal to 1 but is '0'\n"),
        ("--fly high --sing", "orthon: Unknown option: --fly.\n"),
        ("--log-every", 'orthon: Command "train" parameter --log-every requires an argument.\n'),
    ],
)
def test_errors_are_one_line(fails, words: str, expected: str) -> None:
    assert fails("train", *words.split()) == expected


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "orthon", "fly"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == 'orthon: Unknown command "fly". Available commands: train, compare, tokenize, convert, explain, plan.\n'
    )


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, fails) -> None:
    monkeypatch.setattr(entry, "EXTRA", ("surely_not_installed",))
    assert fails("train") == "orthon: the trainer needs its extra: pip install 'orthon[train]'\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stepz 3", "Unknown option: --stepz. Did you mean --steps?"),
        ("--steps many", "steps must be a valid integer, unable to parse string as an integer but is 'many'"),
        ("--steps 0", "steps must be greater than or equal to 1 but is '0'"),
        ("--model.size 2M", "model.size must be '1M', '4M'"),
        ("--model.layers 0", "orthon: model.layers must be greater than or equal to 1 but is '0'"),
        ("--optimizer.lr -1", "orthon: optimizer.lr must be greater than 0 but is '-1'"),
        ("--optimizer.rank-fraction 2", "optimizer.rank_fraction must be less than or equal to 1 but is '2'"),
        ("--optimizer.fraction 0.5", "optimizer.fraction is 0.5, but only dion2 and dion3 update a share of the rows"),
        ("--optimizer.name muon --optimizer.rank-fraction 0.5", "only dion has a rank and optimizer.name is muon"),
        ("--optimizer.name dion2 --optimizer.fraction 0", "optimizer.fraction must be greater than 0 but is '0'"),
        (
            "--optimizer.name dion3 --optimizer.options selection=best",
            "optimizer dion3: Dion3: selection should be one of",
        ),
        ("--optimizer.name muon --optimizer.options polar=qr", "optimizer muon: Muon: polar should be one of"),
        ("--optimizer.options power_iterations=0", "power_iterations"),
        ("--optimizer.options colour=red", "colour"),
        ("--optimizer.options colour", "KEY=VALUE expected but got 'colour'"),
        ("--config missing.yaml", "cannot read the settings in missing.yaml: No such file or directory"),
        ("--config", "parameter --config requires an argument"),
        ("--resume missing", "cannot read the settings in missing/config.yaml"),
        ("--data.source text --data.paths missing", "there is no file or directory"),
        ("--data.source text --data.paths empty", "data.paths hold no file: /"),
        (
            "--data.source text --data.paths short",
            "the training text (95 tokens) is shorter than one sequence (257 tokens",
        ),
        (
            "--data.source text --data.paths middle",
            "the held-out text (150 tokens) is shorter than one sequence",
        ),
        ("--data.source shards --data.paths short", "99 bytes are no whole number of uint16 tokens"),
    ],
)
def test_errors_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, snapshot, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").write_text("x" * 99)
    (tmp_path / "middle").write_text("x" * 2999)
    before = snapshot(tmp_path)
    assert message in fails("train", *words.split())
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--optimizers sgd",
            "optimizers must be of dion, dion2, dion3, muon, normuon, torch-muon, adamw, lion but has 'sgd'",
        ),
        ("--optimizers dion:half", "optimizers takes a fraction such as dion:1/16 but has 'dion:half'"),
        ("--optimizers dion2:", "optimizers takes a fraction such as dion2:1/16 but has 'dion2:'"),
        ("--optimizers dion3:1/0", "optimizers takes a fraction such as dion3:1/16 but has 'dion3:1/0'"),
        ("--optimizers dion2:3/2", "optimizer.fraction must be less than or equal to 1 but is 1.5"),
        ("--optimizers muon:1/4", "optimizers takes a fraction for dion, dion2, dion3 alone but has 'muon:1/4'"),
        ("--optimizers dion:2", "optimizer.rank_fraction must be less than or equal to 1 but is 2.0"),
        ("--optimizers adamw:1/4", "optimizers takes a fraction for dion, dion2, dion3 alone but has 'adamw:1/4'"),
        ("--optimizers dion dion", "each once"),
        ("--sweep", "sweep must name one or more"),
        ("--sweep 0", "sweep must be greater than 0 but is '0'"),
        ("--optimizer.lr 1", "Unknown option: --optimizer.lr"),
        ("--resume x", "Unknown option: --resume"),
    ],
)
def test_errors_of_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails, words: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails("compare", *words.split())
    assert not any(tmp_path.iterdir())


def test_a_run_is_never_overwritten(tmp_path: Path, tiny: list[str], fails, snapshot) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, "--steps=2", f"--out={run}"]) == 0
    before = snapshot(tmp_path)
    assert f"{run} is not empty; go on with its run by --resume {run}" in fails("train", *tiny, "--out", run)
    refused = {
        "--model.layers=3": "has model.layers 2, which cannot become 3",
        "--optimizer.lr=0.5": "has optimizer.lr 0.04, which cannot become 0.5",
        "--seed=1": "has seed 0, which cannot become 1",
        "--steps=1": "steps must be above the 2 that are done",
        "--out=elsewhere": "no --out or --config",
    }
    for flag, message in refused.items():
        assert message in fails("train", f"--resume={run}", flag)
    file = run / "config.yaml"
    assert f"{file} is a file" in fails("train", *tiny, "--out", file)
    assert snapshot(tmp_path) == before


def test_flags_override_the_file(tmp_path: Path, tiny: list[str]) -> None:
    (tmp_path / "run.yaml").write_text(
        "steps: 9\nseed: 5\noptimizer: {lr: 1e-3, options: {eps: 1e-9}}\nmodel: {layers: 3, ffn: 48}\n"
    )
    words = [word for word in tiny if not word.startswith(("--steps", "--model.ffn"))]
    words += [f"--config={tmp_path / 'run.yaml'}", "--steps=7", "--steps=2", f"--out={tmp_path / 'run'}"]
    assert main(["train", *words, "--optimizer.options", "power_iterations=2", "right_factor=orthonormalize"]) == 0
    config = read_config(tmp_path / "run" / "config.yaml", TrainConfig)
    assert (config.steps, config.seed, config.optimizer.lr) == (2, 5, 1e-3)  # of a flag given twice, the last counts
    assert (config.model.layers, config.model.ffn) == (2, 48)
    assert config.optimizer.options == {"power_iterations": 2, "right_factor": "orthonormalize"}
