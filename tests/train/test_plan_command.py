"""`orthon plan`: its table, its words, its files, and what it refuses. The plans themselves are tested elsewhere."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orthon import machines
from orthon.machines import MACHINES
from orthon.train.commands.main import main
from orthon.train.commands.plan_lines import crossovers
from tests.train.support.planned import stand_in

TINY = "--model.size=1M --vocabulary=256 --mesh.dp-shard=16"


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `orthon plan` with the stand-in, and return what it prints."""

    def call(*words: str, least_ranks: int = 1) -> str:
        monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in(least_ranks))
        capsys.readouterr()
        assert main(["plan", *TINY.split(), *words]) == 0
        return capsys.readouterr().out

    return call


def test_the_table_and_the_words(plans) -> None:
    said = plans("--optimizers", "dion:1/4", "muon", "adamw", "--tokens-per-step=1000000", "--utilization=0.5")
    lines = said.splitlines()
    assert lines[1].split()[0] == "optimizer"
    assert lines[2].startswith("─────")
    cells = lines[3].split("  ")
    assert cells[0] == "dion:1/4"
    assert [cell.strip() for cell in cells if cell.strip()][1] == "10 ms"
    assert "700 MB" in lines[3]
    assert lines[3].endswith("yes")
    assert len(lines[3:6]) == 3
    assert "16 GPUs of h100; times are estimates" in said
    # 6 · weights · 10⁶ tokens at half of 593.4 TFLOP/s on 16 GPUs.
    assert "6 operations for each of 951,424 weights and 1,000,000 tokens at 50% of 593 TFLOP/s on each of 16" in said
    seconds = 6 * 951_424 * 1e6 / (0.5 * MACHINES["h100"].bfloat16 * 16)
    assert f"{0.01 / (0.01 + seconds):.2%}" in lines[3]
    assert "of the orthonormal updates, dion:1/4 takes the least time: 10 ms; adamw takes 10 ms" in said
    assert "below about 48 GPUs dion:1/4 takes less time than muon, above that muon" in said
    assert "below about 48 GPUs adamw takes less time than muon, above that muon" in said


def test_the_share_of_a_step_that_is_given(plans) -> None:
    said = plans("--optimizers", "dion:1/4", "--step-seconds=0.99", "--no-other-ranks")
    assert "1.00%" in said
    assert "takes 0.99 s, as given" in said
    assert "below" not in said
    assert "whole step" not in plans("--optimizers", "dion:1/4", "--no-other-ranks")


def test_recomputation_takes_a_third_more(plans) -> None:
    words = ("--optimizers", "dion", "--no-other-ranks", "--tokens-per-step=100")
    assert "need 6 operations" in plans(*words)
    assert "need 8 operations for each of 951,424 weights and 100 tokens, activations computed" in plans(
        *words, "--recompute"
    )


def test_files(plans, tmp_path: Path) -> None:
    files = tmp_path / "plan.json", tmp_path / "plan.png"
    plans("--optimizers", "dion:1/4", "muon", f"--json={files[0]}", f"--picture={files[1]}")
    content = json.loads(files[0].read_text())
    assert [row["optimizer"] for row in content["optimizers"]] == ["dion:1/4", "muon"]
    assert list(content["seconds_by_ranks"]["muon"]) == ["1", "4", "16", "64"]
    assert content["seconds_by_fraction"]["dion"]["0.0625"] == pytest.approx(0.04 / 16)
    assert content["seconds_by_fraction"]["muon"] == {"1.0": pytest.approx(0.03)}
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_where_it_fits(plans) -> None:
    said = plans("--optimizers", "dion:1/4", "muon", least_ranks=32)
    assert "dion:1/4 does not fit; it does on 64 GPUs: --mesh.dp-shard 64" in said
    assert "takes the least time" not in said


def test_a_measured_machine_is_read_back(plans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    monkeypatch.setattr(machines, "measure", lambda **_: MACHINES["a100"])
    said = plans("--machine=measure", f"--machine-file={path}", "--optimizers", "dion", "--no-other-ranks")
    assert "16 GPUs of a100" in said
    assert machines.machine_from(yaml.safe_load(path.read_text()), str(path)) == MACHINES["a100"]
    assert "16 GPUs of a100" in plans(f"--machine={path}", "--optimizers", "dion", "--no-other-ranks")


def test_names_that_look_like_markup(plans, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "[").mkdir()
    path = tmp_path / "[/b]:x:.yaml"
    monkeypatch.setattr(machines, "measure", lambda **_: replace(MACHINES["a100"], name="[/b] $\\no$ :x:"))
    words = ("--optimizers", "dion", f"--picture={tmp_path / 'plan.png'}")
    said = plans("--machine=measure", f"--machine-file={path}", *words)
    assert f"measured this machine: {path}; " in said
    assert "16 GPUs of [/b] $\\no$ :x:;" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mesh.tp 3", "mesh.tp must divide the heads (4) but is 3"),
        ("--mesh.tp 4", "mesh.tp must divide the key and value heads (2) but is 4"),
        (
            "--mesh.tp 4 --model.kv-heads 4 --model.ffn 450",
            "mesh.tp must divide the inner width of the feed-forward blocks (450) but is 4",
        ),
        ("--mesh.tp 2 --vocabulary 257", "mesh.tp must divide the number of different tokens (257) but is 2"),
        ("--mesh.tp 0", "mesh.tp must be greater than or equal to 1 but is '0'"),
        (
            "--machine h10",
            "machine must be one of cpu, a100, h100, h200, b200, gb300, measure, or a YAML file with such figures, but "
            "is 'h10'; did you mean 'h100'?",
        ),
        ("--machine measured", "did you mean 'measure'?"),
        ("--machine missing.yaml", "machine: cannot read missing.yaml: No such file"),
        ("--machine broken.yaml", "machine: broken.yaml is not YAML"),
        ("--optimizers dion:0", "optimizer.rank_fraction must be greater than 0 but is 0.0"),
        ("--optimizers dion:3/2", "optimizer.rank_fraction must be less than or equal to 1 but is 1.5"),
        ("--optimizers dion2:-1", "optimizer.fraction must be greater than 0 but is -1.0"),
        ("--optimizers dion:half", "optimizers takes a fraction such as dion:1/16 but has 'dion:half'"),
        (
            "--optimizers shampoo",
            "optimizers must be of dion, dion2, dion3, muon, normuon, torch-muon, adamw, lion but",
        ),
        ("--optimizers Dion:1/4", "lion but has 'Dion:1/4'; did you mean 'dion'?"),
        ("--optimizers dion:1/16,muon", "words with spaces between, as in dion:1/16 muon, but has 'dion:1/16,muon'"),
        ("8B", "'8B' belongs to no setting: write --NAME before it"),
        ("--optimizers torch-muon", "no plan can be made of it: write muon"),
        ("--optimizers", "optimizers must name one or more, each once"),
        ("--optimizers dion dion", "each once"),
        ("--utilization 1.5", "utilization must be less than or equal to 1 but is '1.5'"),
        ("--utilization 0", "utilization must be greater than 0 but is '0'"),
        ("--step-seconds 1 --tokens-per-step 5", "both give the time of a step: leave out one"),
        ("--step-seconds 1 --recompute", "recompute is for the estimate from tokens_per_step"),
        ("--json nowhere/plan.json", "nowhere/plan.json cannot be written: there is no folder nowhere"),
        ("--json .", ". cannot be written: it is a folder"),
        ("--picture nowhere/plan.png", "nowhere/plan.png cannot be written: there is no folder nowhere"),
        ("--picture plan.jpig", "picture must end in .png, .pdf or .svg but is plan.jpig"),
        (
            "--model.size 405B --vocabulary 128256 --mesh.dp-shard 2",
            "LLaMA 405B does not fit on 2 GPUs of h100, nor on 4 times as many: weights and gradients take 1,623 GB; "
            "write --mesh.dp-shard 32 or more",
        ),
        ("--config-json . --model.layers 3", "config_json gives the whole model: leave out --model, or --config-json"),
    ],
)
def test_what_is_refused(
    plans, fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in())
    Path("broken.yaml").write_text("name: [h100")
    assert message in fails("plan", *TINY.split(), *words.split())
    assert [path.name for path in tmp_path.iterdir()] == ["broken.yaml"]


@pytest.mark.parametrize("option", ["--json", "--picture"])
@pytest.mark.parametrize(("kind", "message"), [("link", "it is a link"), ("pipe", "it is a pipe or a device")])
def test_results_replace_files_alone(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, kind: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in())
    path = tmp_path / "result.png"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere.png")
    else:
        os.mkfifo(path)
    assert f"{path} cannot be written: {message}" in fails("plan", *TINY.split(), option, path)
    assert path.is_symlink() or path.is_fifo()


def test_two_results_have_two_names(fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in())
    words = [f"--json={tmp_path / 'same.png'}", f"--picture={tmp_path / 'same.png'}"]
    assert "another result has that name" in fails("plan", *TINY.split(), *words)


@pytest.mark.parametrize("change", ["missing", "negative"])
@pytest.mark.parametrize("command", ["plan", "explain"])
def test_machine_files_with_wrong_rates(
    fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, change: str
) -> None:
    monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in())
    figures = dict(machines.plain_values(MACHINES["h100"]))
    assert figures.pop("bfloat16") > 0
    if change == "negative":
        figures["bfloat16"] = -1.0
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(figures))
    said = fails(command, f"--machine={path}")
    assert str(path) in said
    assert "bfloat16" in said


def test_a_model_that_fits_nowhere(fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "orthon.plan.planning", stand_in(least_ranks=1000))
    said = fails("plan", *TINY.split(), "--optimizers", "dion")
    assert "LLaMA 1M fits on no number of GPUs up to 64: there dion takes 160.0 GB of the 80 GB of h100; write " in said
    assert "--mesh.tp 2, a larger --mesh.dp-shard, or a --machine with more memory" in said


@pytest.mark.parametrize(("command", "rest"), [("plan", []), ("explain", [])])
def test_without_torchrun(fails, monkeypatch: pytest.MonkeyPatch, command: str, rest: list[str]) -> None:
    monkeypatch.setattr(f"orthon.train.commands.{command}.processes", lambda: 2)
    assert f"{command} works in one process, for as many as --mesh says; call it without torchrun" in fails(command)


def test_one_gpu_is_not_many(plans) -> None:
    said = plans("--optimizers", "muon", "--mesh.dp-shard=1", "--no-other-ranks")
    assert "\n1 GPU of h100; times are estimates" in said


def test_crossovers_in_words() -> None:
    falling, level = {8: 4.0, 16: 2.0, 32: 1.0}, {8: 1.5, 16: 1.5, 32: 1.5}
    expected = ["below about 21 GPUs b takes less time than a, above that a"]
    assert crossovers({"a": falling, "b": level}) == expected
    assert crossovers({"b": level, "a": falling}) == expected
    assert crossovers({"a": falling, "b": {8: 5.0, 16: 3.0}}) == []
    assert crossovers({"a": falling, "b": {}}) == []
    assert crossovers({"a:1/2": falling, "a:1/4": level}) == [], "of one rule"
    nearly = {8: 1.51, 16: 1.49, 32: 1.51}
    assert crossovers({"a": nearly, "b": level}) == []
    large = {1000: 1.0, 4000: 3.0}, {1000: 3.0, 4000: 1.0}
    assert crossovers({"a": large[0], "b": large[1]}) == [
        "below about 2,000 GPUs a takes less time than b, above that b"
    ]
    wave = {1: 1.0, 4: 4.0, 16: 1.0, 64: 4.0}
    assert crossovers({"a": wave, "b": {1: 2.0, 4: 2.0, 16: 2.0, 64: 2.0}}) == [
        "below about 2 GPUs a takes less time than b, then b up to about 8, then a up to about 32, above that b"
    ]
    at_once = {"a": {1: 1.0, 4: 4.0}, "b": {1: 1.03, 4: 1.0}}
    assert crossovers(at_once) == ["on 1 GPU a takes less time than b, above that b"]


def test_copies_alone_are_ranks_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """With the real planner: those of DistributedDataParallel have no mesh."""
    words = "plan --model.size=1M --vocabulary=256 --mesh.dp-replicate=16 --no-other-ranks --optimizers muon adamw"
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    assert "16 GPUs of h100" in said
    assert "0 bytes" in said.splitlines()[3], "all goes between nodes"
