"""Runs and states from strangers: no command reads or writes elsewhere, runs code, hangs, or shows a traceback.

Some hundred directories and files are made, each with one fault that an attacker would put there. Processes that watch
every file they open go through all of them.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orthon.train.commands.main import main
from tests.train.support.strange_pickles import FILES, saved
from tests.train.support.strange_runs import OPTIONS, RUNS

SECONDS, MEGABYTES = 2, 500
# What may be good after all: a bit of a name that means nothing, or a number of the optimizer.
MAY_SUCCEED = ("description flipped", "lr is huge")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A tiny run with one checkpoint, of step 40."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", *tiny, "--keep-checkpoints=1", f"--out={directory}"]) == 0
    return directory


def guarded(finished: Path, cases: list[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    """Carry out commands in a process that watches itself. The first one is good, so that all is imported."""
    shutil.copytree(finished, place / "warm")
    warm = {"words": ["train", "--resume", str(place / "warm"), "--steps=41"]}
    script = Path(__file__).parent / "support" / "guarded.py"
    lines = "".join(json.dumps(case) + "\n" for case in [warm, *cases])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        input=lines,
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    named = cases[len(results)]["name"] if len(results) < len(cases) else "the end"
    assert len(results) == len(cases), f"the process has ended in {named}: {done.stderr[-2000:]}"
    return results


def faults(result: dict[str, Any], *, codes: tuple[int, ...] = (2,)) -> Iterator[str]:
    """What a command has done that it must not."""
    said = result["said"]
    if result["violations"]:
        yield f"leaves its folder: {result['violations']}"
    if result["code"] not in codes:
        yield f"ends with {result['code']!r}: {said[-300:]} {result['out'][-300:]}"
    if result["code"] == 2 and not (said.startswith("orthon: ") and said.count("\n") == 1 and len(said) < 5000):
        yield f"says {said[:300]!r}"
    if any(not (letter.isprintable() or letter == "\n") for letter in said + result["out"]):
        yield "says what moves the cursor"
    if result["seconds"] > SECONDS or result["megabytes"] > MEGABYTES:
        yield f"takes {result['seconds']:.1f} s and {result['megabytes']:.0f} MB"


def outside_is_as_before(place: Path) -> bool:
    return (place / "outside" / "secret").exists() and not list(place.rglob("executed"))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # of torch 2.11
def test_runs(finished: Path, tmp_path: Path) -> None:
    assert len(RUNS) + len(FILES) > 150
    cases = []
    for number, (name, spoil) in enumerate(RUNS.items()):
        place = tmp_path / f"{number}"
        (place / "outside").mkdir(parents=True)
        (place / "outside" / "secret").write_text("mine")
        run = place / "run"
        shutil.copytree(finished, run)
        spoil(run)
        cases.append({"name": name, "folder": str(run), "words": ["train", "--resume", str(run), "--steps=41"]})
    before = {
        str(p): p.read_bytes() for c in cases for p in Path(c["folder"]).parent.glob("outside/**/*") if p.is_file()
    }
    found = []
    for result, case in zip(guarded(finished, cases, tmp_path), cases, strict=True):
        may = (0, 2) if result["name"].startswith(MAY_SUCCEED) else (2,)
        found += [f"{result['name']}: {fault}" for fault in faults(result, codes=may)]
        if not outside_is_as_before(Path(case["folder"]).parent):
            found.append(f"{result['name']}: something ran, or a file is lost")
    assert not found, "\n".join(found)
    assert before == {path: Path(path).read_bytes() for path in before}
    assert not (tmp_path / "executed").exists()


def states() -> Iterator[tuple[str, bytes]]:
    """Files for `orthon convert`."""
    param = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = torch.optim.Muon([("w", param)])
    param.grad = torch.randn_like(param)
    optimizer.step()
    good = optimizer.state_dict()
    [group] = good["param_groups"]

    def with_group(**changes: object) -> bytes:
        return saved({**good, "param_groups": [{**group, **changes}]})

    shared: list[Any] = []
    for _ in range(100):
        shared = [shared, shared]
    deep: list[Any] = []
    for _ in range(90):
        deep = [deep]
    for name, content in FILES.items():
        yield name, content()
    for key in (
        "lr",
        "momentum",
        "nesterov",
        "ns_coefficients",
        "eps",
        "adjust_lr_fn",
        "params",
        "param_names",
        "other",
    ):
        for name, value in {**OPTIONS, "shared lists": shared, "many": [0] * 100_000}.items():
            if (key, name) not in {("lr", "huge"), ("params", "list")}:
                yield f"{key} is {name}", with_group(**{key: value})
        yield f"{key} is deep", with_group(**{key: deep})
    for name, value in OPTIONS.items():
        yield f"momentum buffer is {name}", saved({**good, "state": {0: {"momentum_buffer": value}}})
        yield f"state is {name}", saved({**good, "state": value})
        yield f"groups are {name}", saved({**good, "param_groups": value})
        yield f"all is {name}", saved(value)
    yield "names of a megabyte", saved({**good, "x" * 1_000_000: 1, "state": {"y" * 1_000_000: {}}})


def test_states(finished: Path, tmp_path: Path) -> None:
    cases = []
    for number, (name, content) in enumerate(states()):
        place = tmp_path / f"{number}" / "files"
        place.mkdir(parents=True)
        (place / "in.pt").write_bytes(content)
        (place / "out.pt.part").write_text("mine")
        words = ["convert", str(place / "in.pt"), "--source", "torch-muon", "--out", str(place / "out.pt")]
        cases.append({"name": name, "folder": str(place), "words": words})
    found = []
    for result, case in zip(guarded(finished, cases, tmp_path), cases, strict=True):
        found += [f"{result['name']}: {fault}" for fault in faults(result, codes=(0, 2))]
        if result["left"] != ["in.pt", *["out.pt"] * (result["code"] == 0), "out.pt.part"]:
            found.append(f"{result['name']}: leaves {result['left']}")
        if (Path(case["folder"]) / "out.pt.part").read_text() != "mine":
            found.append(f"{result['name']}: writes over a file of the user")
    assert not found, "\n".join(found)
    assert not (tmp_path / "executed").exists()


def test_the_guard_sees(finished: Path, tmp_path: Path) -> None:
    """A file elsewhere that is read, and one that is written."""
    torch.save({"state": {}, "param_groups": [{"params": []}]}, tmp_path / "in.pt")
    (tmp_path / "folder").mkdir()
    words = ["convert", str(tmp_path / "in.pt"), "--source", "torch-muon", "--out"]
    case = {"name": "", "folder": str(tmp_path / "folder"), "words": [*words, str(tmp_path / "out.pt")]}
    [result] = guarded(finished, [case], tmp_path)
    [seen, *_] = result["violations"]
    assert seen == f"reads {tmp_path / 'in.pt'}"


@pytest.mark.parametrize("to", ["a file", "nothing", "a folder"])
def test_links_with_the_names_of_parts(finished: Path, tmp_path: Path, to: str, fails, snapshot) -> None:
    """What is being written has a name that nobody knows, so that links of the former names lead nowhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("mine")
    target = {"a file": outside / "secret", "nothing": outside / "new", "a folder": outside}[to]
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("config", "metrics", "summary", "sample", "loss", "config.yaml"):
        (run / f"{name}.part").symlink_to(target)
    for name in ("step-00000041.part", "step-00000040.old.part", "step-00000041", "step-00000042.part"):
        (run / "checkpoints" / name).symlink_to(target)
    before = snapshot(outside)
    assert main(["train", f"--resume={run}", "--steps=41"]) == 0
    assert snapshot(outside) == before
    torch.save({"state": {}, "param_groups": [{"params": []}]}, tmp_path / "in.pt")
    (tmp_path / "out.pt").symlink_to(target)
    assert "out.pt exists; choose another --out" in fails(
        "convert", tmp_path / "in.pt", "--source", "torch-muon", "--out", tmp_path / "out.pt"
    )
    assert snapshot(outside) == before


def test_a_comparison(tmp_path: Path, tiny: list[str], fails) -> None:
    """Its runs are as untrusted as a single one."""
    words = ["compare", *tiny, "--steps=1", "--optimizers", "adamw", f"--out={tmp_path / 'all'}"]
    assert main(words) == 0
    [run] = (path for path in (tmp_path / "all").iterdir() if path.is_dir())
    (run / "checkpoints").rename(tmp_path / "outside")
    (run / "checkpoints").symlink_to(tmp_path / "outside")
    assert "checkpoints should be a folder of the run, but is a link" in fails(*words)


@pytest.mark.parametrize("name", ["muon-lr0.04", "token-cache"])
def test_folders_of_a_comparison_are_no_links(tmp_path: Path, tiny: list[str], fails, snapshot, name: str) -> None:
    """They are parts of the directory that somebody may have given away."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / name).symlink_to(tmp_path / "mine")
    before = snapshot(tmp_path)
    said = fails("compare", *tiny, "--optimizers", "muon", f"--out={tmp_path / 'compare'}")
    assert f"{tmp_path / 'compare' / name} should be a folder of the run, but is a link" in said
    assert {path for path in snapshot(tmp_path) if not path.endswith("run.lock")} == set(before)
