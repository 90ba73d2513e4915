import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from orthon.train.commands.comparison import plan
from orthon.train.commands.comparison_report import Result, best_of_each, show_table, steps_to, target_loss
from orthon.train.commands.main import main
from orthon.train.results.directory import Summary
from orthon.train.results.metrics import Record
from orthon.train.results.progress import LineProgress
from orthon.train.run.run import Run
from orthon.train.settings.run import CompareConfig


def test_names_that_look_like_markup_and_a_picture_that_cannot_be_written(
    tmp_path: Path, tiny: list[str], fails, snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a[" / "b]:x:[red]"
    (out / "comparison.png").mkdir(parents=True)
    words = ["compare", *tiny, "--steps=2", f"--out={out}", "--optimizers", "adamw"]
    said = fails(*words, code=1)
    assert said == (
        f"orthon: {out}/comparison.png: Is a directory; all runs are done and saved: the same command writes the "
        "results\n"
    )
    (out / "comparison.png").rmdir()
    before = {path: state for path, state in snapshot(out).items() if "-lr" in path}
    assert main(words) == 0
    assert f"results in {out}: comparison.png, comparison.md, and" in capsys.readouterr().out
    assert {path: state for path, state in snapshot(out).items() if "-lr" in path} == before


def test_a_comparison_and_its_second_call(
    tmp_path: Path, tiny: list[str], fails, snapshot, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    out = tmp_path / "out"
    words = [
        "compare",
        *tiny,
        "--steps=20",
        f"--out={out}",
        "--optimizers",
        "dion:1/2",
        "adamw",
        "--sweep",
        "1",
        "2",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    runs = {"adamw-lr0.003", "adamw-lr0.006", "dion-1_2-lr0.04", "dion-1_2-lr0.08"}
    assert {path.name for path in out.iterdir()} == {*runs, "comparison.md", "comparison.png"}
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "comparison.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == ["| optimizer", "| ---", "| dion:1/2", "| adamw"]
    assert "dion:1/2 writes" in said or "adamw writes" in said

    before = {path: state for path, state in snapshot(out).items() if "-lr" in path}

    def train(*_: object) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as context:
        context.setattr(Run, "train", train)
        assert main(words) == 0
        assert "4 already done" in capsys.readouterr().out
        assert (out / "comparison.md").read_text().splitlines() == table
        assert "holds a run with steps 20, not 21" in fails(*words, "--steps=21")
    assert {path: state for path, state in snapshot(out).items() if "-lr" in path} == before

    # A run that was interrupted goes on from its checkpoint, and a new optimizer joins.
    (out / "adamw-lr0.006" / "summary.json").unlink()
    capsys.readouterr()
    assert main([*words[:-5], "adamw", "torch-muon", "--sweep", "1", "2"]) == 0
    assert "4 runs, 1 already done" in capsys.readouterr().out
    assert (out / "torch-muon-lr0.04").is_dir()


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_comparison_goes_on(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch, numbers
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    words = ["compare", *tiny, "--steps=12", f"--out={tmp_path}", "--optimizers", "adamw", "lion"]
    with monkeypatch.context() as context:
        context.setattr(LineProgress, "show", interrupt)
        assert main(words) == 0
    assert "stopped; the same command goes on from here" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["adamw-lr0.003"]
    assert len(numbers(tmp_path / "adamw-lr0.003")) == 1
    assert main(words) == 0
    assert len(numbers(tmp_path / "adamw-lr0.003")) == 12
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_interrupt_stops_at_once(tmp_path: Path, tiny: list[str], fails, monkeypatch) -> None:
    def interrupt_twice(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LineProgress, "show", interrupt_twice)
    assert fails("train", *tiny, f"--out={tmp_path / 'run'}", code=130) == "orthon: interrupted\n"


def test_a_foreign_directory(tmp_path: Path, tiny: list[str], fails, snapshot) -> None:
    (tmp_path / "adamw-lr0.003").mkdir()
    (tmp_path / "adamw-lr0.003" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    assert "holds no run; choose another --out" in fails("compare", *tiny, "--out", tmp_path)
    assert snapshot(tmp_path) == before


def test_the_directory_of_a_run(tmp_path: Path, tiny: list[str], fails) -> None:
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert "holds a run of its own; choose another --out" in fails("compare", *tiny, f"--out={tmp_path}")


def test_a_failed_run_is_a_result(tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        *tiny,
        "--steps=12",
        f"--out={tmp_path}",
        "--optimizers",
        "adamw",
        "--sweep",
        "1",
        "1e32",
    ]
    for _ in range(2):
        assert main(words) == 0
        assert "inf at 3e+29" in capsys.readouterr().out
    assert "| adamw | 0.003 |" in (tmp_path / "comparison.md").read_text()


def result(label: str, lr: float, *losses: float) -> Result:
    records = [
        Record(
            step=10 * i,
            loss=loss,
            val_loss=loss,
            lr=lr,
            grad_norm=1.0,
            tokens_per_second=1.0,
            optimizer_share=0.1,
            seconds=1.0,
        )
        for i, loss in enumerate(losses, start=1)
    ]
    summary = Summary(
        steps=10, val_loss=losses[-1], seconds=1.0, optimizer_share=0.1, state_bytes=1, corpus="", sample=""
    )
    return Result(label, lr, summary, records)


def test_choosing_runs_and_target() -> None:
    dion, worse = result("dion", 0.02, 3.0, 2.0, 1.8), result("dion", 0.04, 4.0, 3.0)
    adamw, failed = result("adamw", 0.003, 3.0, 2.1), result("lion", 1.0, 3.0, float("inf"))
    best = best_of_each([worse, dion, adamw, failed])
    assert best == [dion, adamw, failed]
    assert target_loss(best) == 2.1
    assert target_loss([dion, failed]) == 1.8
    assert target_loss([failed]) == float("inf")
    assert steps_to(dion.records, 2.1) == 20
    assert steps_to(adamw.records, 1.0) is None


def test_labels_of_optimizers() -> None:
    labels = {
        "dion": ("dion-lr{lr}", 0.25, None),
        "dion:1/4": ("dion-1_4-lr{lr}", 0.25, None),
        "dion2": ("dion2-lr{lr}", None, 0.25),
        "dion2:1/8": ("dion2-1_8-lr{lr}", None, 0.125),
        "dion3:0.5": ("dion3-0.5-lr{lr}", None, 0.5),
        "muon": ("muon-lr{lr}", None, None),
        "normuon": ("normuon-lr{lr}", None, None),
        "torch-muon": ("torch-muon-lr{lr}", None, None),
    }
    config = CompareConfig(optimizers=tuple(labels), sweep=(1.0, 2.0), momentum=0.9, weight_decay=0.1, scalar_lr=0.01)
    planned = plan(config, Path("out"))
    assert [one.label for one in planned] == [label for label in labels for _ in range(2)]
    for one in planned:
        directory, rank_fraction, fraction = labels[one.label]
        optimizer = one.config.optimizer
        assert one.directory == Path("out") / directory.format(lr=f"{one.lr:g}")
        assert optimizer.name == one.label.partition(":")[0]
        assert (optimizer.rank_fraction, optimizer.fraction) == (rank_fraction, fraction)
        assert (optimizer.momentum, optimizer.weight_decay, optimizer.scalar_lr) == (0.9, 0.1, 0.01)


def test_the_table_is_whole_in_a_narrow_terminal() -> None:
    summary = Summary(steps=1, val_loss=2.5, seconds=1.0, optimizer_share=0.1, state_bytes=0, corpus="", sample="")
    file = io.StringIO()
    console = Console(file=file, width=20)
    show_table(console, [Result("dion:1/16", 0.01, summary, [])], 2.5)
    assert "…" not in file.getvalue()
    row = file.getvalue().splitlines()[4]
    assert row.split() == ["dion:1/16", "0.01", "2.5000", "—", "1.0", "s", "10.0%", "0.00", "MB"]
    assert console.width == 20
