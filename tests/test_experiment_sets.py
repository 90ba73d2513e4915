"""The sets: what they cost, that they compare like with like, and that each runs, at a hundredth of its size."""

import inspect
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import __main__ as command
from experiments import costs, report, training
from experiments.cell import PART, Cell
from experiments.entries import Contender, Experiment, Setting
from experiments.pictures import draw
from experiments.place import Place
from experiments.quick import quick, resized
from experiments.results import FOLDER, by_key, read
from experiments.sets import SETS
from experiments.tables import page
from experiments.workers import News, Workers
from matplotlib.figure import Figure

import orthon
from tests.support.made_up_runs import Here

MODEL = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32, "context": 16}
CLASSES = {"dion": orthon.Dion, "dion2": orthon.Dion2, "dion3": orthon.Dion3, "muon": orthon.Muon}
each_set = pytest.mark.parametrize("name", SETS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_all_sets_together_take_less_than_ten_hours_of_two_cores() -> None:
    assert (
        costs.hours(
            costs.units_of_all(experiment for experiment in SETS.values() if experiment.device == "cpu"),
            costs.USUAL_SECONDS,
            workers=2,
        )
        < 10
    )


@each_set
def test_the_quick_form_takes_less_than_ten_minutes_of_two_cores(name: str) -> None:
    small = quick(SETS[name])
    assert 60 * costs.hours(costs.units_left(small, {}), costs.USUAL_SECONDS, workers=2) < 10
    contenders, settings = ({each(entry).name for entry in SETS[name].entries} for each in (contender_of, setting_of))
    assert {contender_of(entry).name for entry in small.entries} == contenders
    assert {setting_of(entry).name for entry in small.entries} == settings


def test_larger_models_cost_what_was_measured() -> None:
    def units(size: Any) -> float:
        return costs.units(replace(costs.DEMO, size=size, batch=4 if size == "20M" else 8))

    assert units("1M") == 1
    assert units("4M") == pytest.approx(3.5, rel=0.1)
    assert units("20M") == pytest.approx(14, rel=0.2)


@each_set
def test_what_is_left_gets_less_with_each_run(name: str) -> None:
    experiment = SETS[name]
    assert costs.units_left(experiment, {}) <= costs.units_of_all([experiment]) * (1 + 1e-9)
    assert costs.units_left(experiment, {}) > 0


@each_set
def test_optimizers_are_compared_at_equal_companions_order_and_schedule(name: str) -> None:
    own = {"name", "lr", "rank_fraction", "fraction", "options"}
    for setting in SETS[name].settings:
        configs = [entry.cell(0, 0).config().model_dump() for entry in SETS[name].at(setting)]
        optimizers = [config.pop("optimizer") for config in configs]
        assert all(config == configs[0] for config in configs)
        rest = [{key: value for key, value in optimizer.items() if key not in own} for optimizer in optimizers]
        assert all(each == rest[0] for each in rest)


@each_set
def test_names_tell_contenders_and_settings_apart(name: str) -> None:
    entries = SETS[name].entries
    keys = {(contender_of(entry).name, setting_of(entry).name) for entry in entries}
    assert len(keys) == len(entries) == len({entry.cell(0, 0).key for entry in entries})
    named = {SETS[name].baseline, *(each for pair in SETS[name].pairs for each in pair)}
    assert named <= {contender_of(entry).name for entry in entries}


def test_large_batches_are_cut_into_parts() -> None:
    large = replace(costs.DEMO, batch=512)
    assert large.config().accumulation == 512 * 256 // PART["cpu"] == 16
    assert large.config("cuda").accumulation == 2
    assert replace(costs.DEMO, batch=33).config().accumulation == 3  # equal parts
    assert replace(costs.DEMO, batch=31, size="120M").config().accumulation == 31  # the least is one sequence


def contender_of(entry: Any) -> Contender:
    return entry.contender


def setting_of(entry: Any) -> Setting:
    return entry.setting


def works_today(contender: Contender) -> bool:
    """Return whether the optimizer has the options of a contender."""
    kind = CLASSES.get(contender.optimizer)
    return kind is None or contender.options.keys() <= inspect.signature(kind).parameters.keys()


def hundredth(experiment: Experiment) -> Experiment:
    """Return a set at about a hundredth of its size, in one setting."""

    def tiny(setting: Setting) -> Setting:
        return replace(setting, size="1M", model=MODEL, batch=4, steps=4)

    first = experiment.settings[0]
    small = resized(quick(replace(experiment, entries=tuple(experiment.at(first)))), tiny)
    return replace(small, entries=tuple(entry for entry in small.entries if works_today(entry.contender)))


class OneHere(Here):
    """In place of worker processes."""

    def __init__(self, number: int, place: Place) -> None:
        del number
        super().__init__(partial(training.train, place=place))

    def __enter__(self) -> "OneHere":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Workers", OneHere)
    monkeypatch.setattr(costs, "measured_seconds_per_unit", lambda _: 35.0)


@each_set
@pytest.mark.usefixtures("in_this_process")
def test_each_set_runs_and_is_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = hundredth(SETS[name])
    monkeypatch.setitem(command.SETS, name, small)
    assert command.main([name, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "hours on two cores" in capsys.readouterr().out
    assert len(read(tmp_path / f"{small.name}.jsonl")) == sum(len(entry.setting.seeds) for entry in small.entries)
    page = (tmp_path / f"{small.name}.md").read_text()
    for entry in small.entries:
        assert f"| {entry.contender.name} |" in page
    for picture in (f"{small.name}.png", f"{small.name}-lr.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.usefixtures("in_this_process")
def test_a_failure_sets_the_exit_code_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Contender(name="wrong", optimizer="muon", lr=0.04, options={"nesterof": True})
    small = hundredth(SETS["family"])
    monkeypatch.setitem(
        command.SETS, "family", replace(small, entries=(*small.entries, replace(small.entries[0], contender=wrong)))
    )
    assert command.main(["family", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: UserError: optimizer muon: Muon: unexpected keyword argument 'nesterof'" in said
    assert "options {'nesterof': True}" in said
    assert "| Dion3 1/4 |" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["batch-120m"])
    assert "batch-120m is for a GPU, and there is none" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_ctrl_c_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(crew: Here) -> list[News]:
        raise KeyboardInterrupt

    monkeypatch.setattr(OneHere, "wait", stopped)
    monkeypatch.setitem(command.SETS, "family", hundredth(SETS["family"]))
    assert command.main(["family", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out.endswith("stopped; the same command goes on from here\n")


each_with_a_page = pytest.mark.parametrize("name", [name for name in SETS if (report.PAGES / f"{name}.md").exists()])


@each_with_a_page
def test_pages_are_those_of_the_data(name: str) -> None:
    found = by_key(read(FOLDER / f"{name}.jsonl"))
    pictures = [f"{name}.png", f"{name}-lr.png"]
    assert all((report.PAGES / picture).exists() for picture in pictures)
    made = page(SETS[name], found, pictures)
    assert (report.PAGES / f"{name}.md").read_text() == made, f"run python -m experiments.report {name}"


@each_with_a_page
def test_legends_lie_in_their_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    draw(SETS[name], by_key(read(FOLDER / f"{name}.jsonl")), tmp_path)
    assert len(figures) == 2
    for figure in figures:
        figure.draw_without_rendering()
        for legend in (*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))):
            box, whole = legend.get_window_extent(), figure.bbox
            assert min(box.x0, box.y0) >= -1, f"{box} of {whole}"
            assert box.x1 <= whole.x1 + 1, f"{box} of {whole}"
            assert box.y1 <= whole.y1 + 1, f"{box} of {whole}"


def test_without_data_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["batch", "--out", str(tmp_path)]) == 1
    assert "there are no data of batch" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_data_may_be_given_in_other_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    monkeypatch.setattr(report, "PAGES", tmp_path)
    assert report.main(["default", "--out", "experiments/../experiments/results"]) == 0
    assert (tmp_path / "default.md").exists()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--workers x", "argument --workers: must be a whole number of at least 1 but is 'x'"),
        ("--workers 0", "argument --workers: must be a whole number of at least 1 but is '0'"),
        ("--out {file}", "argument --out: must be a folder but is the file "),
        ("--out {file}/below", "argument --out: {file}/below: Not a directory"),
        ("--text {empty}", "--text hold no file: {empty}"),
        ("--text /nowhere", "--text: there is no file or directory /nowhere"),
        ("--out {broken}", "{broken}/notes.jsonl, line 1 is no run: "),
    ],
)
def test_what_cannot_be_is_one_line(words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: tmp_path / name for name in ("file", "empty", "broken")}
    places["file"].touch()
    places["empty"].mkdir()
    places["broken"].mkdir()
    (places["broken"] / "notes.jsonl").write_text("hello\n")
    with pytest.raises(SystemExit, match="2"):
        command.main(["family", "--quick", *words.format(**places).split()])
    assert f"error: {said.format(**places)}" in capsys.readouterr().err


def test_worker_processes() -> None:
    """One trains as this process does; one that dies is told and replaced."""
    cell = Cell(optimizer="muon", lr=0.04, seed=0, steps=4, batch=4, model=MODEL)
    endless = replace(cell, steps=10**6)
    with Workers(1, Place()) as crew:
        assert crew.is_free()
        crew.start(cell)
        assert not crew.is_free()
        *_, ended = _until_ended(crew)
        here = training.train(cell, lambda _: None, Place())
        assert ended.outcome is not None
        assert ended.outcome.held_out == here.held_out
        crew.start(endless)
        ((worker, _),) = crew._busy.values()
        assert worker.process.pid is not None
        os.kill(worker.process.pid, 9)
        *_, ended = _until_ended(crew)
        assert ended.error == "the worker process has died with exit code -9"
        assert ended.cell == endless
        assert crew.is_free()


def _until_ended(crew: Workers) -> Iterator[News]:
    while True:
        for news in crew.wait():
            yield news
            if news.ended:
                return
