"""Experiments as data: sweeps, what is kept, going on after a stop, failures, intervals; on made-up losses."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from experiments import costs
from experiments.answers import Answer, answers, steps_to
from experiments.book import Book
from experiments.cell import Cell
from experiments.entries import Contender, Experiment, Setting, crossed
from experiments.intervals import difference, paired, t_quantile
from experiments.results import DataError, Line, Outcome, append, by_key, read
from experiments.runner import Failure, run
from experiments.sweep import FURTHEST, best_of, bottom, further, is_inside, lr_at
from experiments.tables import page
from experiments.workers import Train

from tests.support.made_up_runs import Here, Unseen, made_up

MUON = Contender(name="Muon", optimizer="muon", lr=0.04)
DION = Contender(name="Dion", optimizer="dion", lr=0.04, fraction=0.25)
PLAIN = Setting(name="plain", steps=100)
SET = Experiment(name="made-up", question="Which?", entries=crossed((MUON, DION), (PLAIN,)), target="Muon")
WHERE = {"device": "cpu", "machine": {"processor": "x"}, "commit": "c", "date": "d", "versions": {}}


def book(folder: Path, name: str = SET.name, corpus: str = "text") -> Book:
    return Book(name, folder=folder, corpus=corpus, where=WHERE)


def sitting(folder: Path, train: Train, experiment: Experiment = SET) -> tuple[list[Cell], list[Failure]]:
    """Run what is missing; return the cells that were run, and the failures."""
    crew = Here(train)
    failures = run(experiment, crew, book(folder, experiment.name), Unseen())
    return crew.ended, failures


def known(folder: Path, experiment: Experiment = SET) -> dict[str, Answer]:
    found = by_key(read(folder / f"{experiment.name}.jsonl"))
    return {answer.entry.contender.name: answer for answer in answers(experiment, experiment.settings[0], found)}


def swept(loss: Callable[[int], float]) -> dict[int, float]:
    """Do a whole sweep."""
    losses: dict[int, float] = {}
    while todo := further(losses):
        assert not losses.keys() & set(todo)
        losses |= {k: loss(k) for k in todo}
    return losses


@pytest.mark.parametrize("best", [-5, -1, 0, 1, 4])
def test_a_sweep_goes_on_until_the_best_is_inside(best: int) -> None:
    losses = swept(lambda k: (k - best) ** 2)
    assert best_of(losses) == best
    assert is_inside(losses)
    assert sorted(losses) == list(range(min(best - 1, -1), max(best + 1, 1) + 1))
    assert bottom(losses) == pytest.approx(best)


def test_the_bottom_lies_between_learning_rates() -> None:
    assert bottom(swept(lambda k: (k - 1.3) ** 2)) == pytest.approx(1.3)


def test_a_sweep_ends_far_from_its_center() -> None:
    losses = swept(lambda k: -k)
    assert max(losses) == FURTHEST
    assert not is_inside(losses)
    assert bottom(losses) is None


def test_a_sweep_keeps_away_from_where_runs_diverge() -> None:
    losses = swept(lambda k: math.inf if k > -3 else (k + 4) ** 2)
    assert best_of(losses) == -4
    assert min(swept(lambda _: math.inf)) == -FURTHEST


def test_learning_rates_are_the_same_from_both_sides() -> None:
    assert lr_at(0.04, 2) == lr_at(0.08, 0)
    assert [lr_at(0.04, k) for k in (-1, 0, 1)] == [0.02828, 0.04, 0.05657]


def test_a_set_sweeps_and_then_repeats_the_best_with_every_seed(tmp_path: Path) -> None:
    cells, failures = sitting(tmp_path, made_up(0.08, above=0.5))
    assert not failures
    assert len({cell.key for cell in cells}) == len(cells)
    # k = -1 to 3 with the first seed, and two more seeds at k = 2, for each of the two.
    assert len(cells) == 2 * (5 + 2)
    muon, dion = known(tmp_path).values()
    assert (muon.lr, dion.lr) == (0.08, 0.08)
    assert muon.inside
    assert dion.fitted_lr == pytest.approx(0.08, rel=1e-3)  # learning rates have four digits
    assert muon.loss == pytest.approx(1.1)
    assert muon.difference is None
    assert dion.difference is not None
    assert dion.difference.number == 3
    assert dion.difference.mean == pytest.approx(0.5)
    assert not dion.difference.is_none


def test_without_a_sweep_there_is_one_learning_rate(tmp_path: Path) -> None:
    experiment = replace(SET, entries=crossed((MUON,), (replace(PLAIN, sweeps=False),)))
    cells, _ = sitting(tmp_path, made_up(0.08), experiment)
    assert sorted((cell.lr, cell.seed) for cell in cells) == [(0.04, 0), (0.04, 1), (0.04, 2)]


def test_each_line_tells_all_of_its_run(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04))
    line = json.loads((tmp_path / "made-up.jsonl").read_text().splitlines()[0])
    assert Cell(**line["settings"]).settings == line["settings"]
    assert line["loss"] == line["held_out"][-1][1]
    assert line["held_out"][-1][0] == 100
    assert line.keys() >= {*WHERE, "seconds", "optimizer_share", "diverged", "corpus"}


def test_nothing_is_run_again(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04))
    before = (tmp_path / "made-up.jsonl").read_bytes()
    assert sitting(tmp_path, made_up(0.04)) == ([], [])
    assert (tmp_path / "made-up.jsonl").read_bytes() == before


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, after: int) -> None:
    left = iter(range(after))

    def stopped(cell: Cell, progress: Callable[[float], None]) -> Outcome:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return made_up(0.04)(cell, progress)

    with pytest.raises(KeyboardInterrupt):
        sitting(tmp_path, stopped)
    assert len(read(tmp_path / "made-up.jsonl")) == after
    cells, _ = sitting(tmp_path, made_up(0.04))
    assert len(cells) == 2 * (3 + 2) - after
    assert len(read(tmp_path / "made-up.jsonl")) == 2 * (3 + 2)


def test_what_a_killed_run_has_left_of_a_line_goes(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04))
    path = tmp_path / "made-up.jsonl"
    whole = read(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert read(path) == whole[:-1]
    cells, _ = sitting(tmp_path, made_up(0.04))
    assert [cell.key for cell in cells] == list(by_key(whole[-1:]))
    assert read(path) == whole


def test_a_whole_last_line_without_an_end_stays(tmp_path: Path) -> None:
    """Editors may leave it out."""
    sitting(tmp_path, made_up(0.04))
    path = tmp_path / "made-up.jsonl"
    whole = read(path)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read(path) == whole
    append(path, whole[0])
    assert read(path) == [*whole, whole[0]]


@pytest.mark.parametrize("wrong", ["hello", "[]", "3", "{}", '{"held_out": 1}', '{"held_out": [[1]], "loss": 2}'])
def test_a_line_that_is_no_run_is_told_with_its_place(tmp_path: Path, wrong: str) -> None:
    sitting(tmp_path, made_up(0.04))
    path = tmp_path / "made-up.jsonl"
    path.write_text(f"{wrong}\n{path.read_text()}")
    with pytest.raises(DataError, match=r"made-up\.jsonl, line 1 is no run: .*; delete the line, or mend it"):
        read(path)


def test_runs_that_failed_are_not_left() -> None:
    [muon, _] = SET.entries
    all_left = costs.units_left(SET, {})
    failed = {cell.key for cell in muon.missing({})}
    assert costs.units_left(SET, {}, failed) == pytest.approx(all_left / 2)


def test_runs_on_another_text_do_not_count(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04))
    assert len(book(tmp_path).found) == 10
    assert not book(tmp_path, corpus="another").found


def test_another_sets_runs_are_taken_over(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04))
    more = replace(SET, name="more", entries=crossed((MUON, DION), (replace(PLAIN, seeds=(0, 1, 2, 3)),)))
    cells, _ = sitting(tmp_path, made_up(0.04), more)
    assert [cell.seed for cell in cells] == [3, 3]
    assert len(read(tmp_path / "more.jsonl")) == 12


def test_a_run_that_diverges_is_a_result(tmp_path: Path) -> None:
    _, failures = sitting(tmp_path, made_up(0.04, diverges_from=0.05))
    assert not failures
    assert known(tmp_path)["Muon"].sweep[0.05657] == math.inf
    assert '"loss": null' in (tmp_path / "made-up.jsonl").read_text()
    assert known(tmp_path)["Muon"].lr == 0.04


def test_a_failure_is_told_with_its_settings_and_the_others_go_on(tmp_path: Path) -> None:
    def failing(cell: Cell, progress: Callable[[float], None]) -> Outcome:
        if cell.fraction:
            raise ValueError(f"rank_fraction {cell.fraction} is\nno good")
        return made_up(0.04)(cell, progress)

    cells, failures = sitting(tmp_path, failing)
    assert len(cells) == (3 + 2) + 3
    assert {failure.error for failure in failures} == {"ValueError: rank_fraction 0.25 is no good"}
    assert {str(failure.cell) for failure in failures} == {
        f"optimizer dion, lr {lr}, seed 0, steps 100, batch 8, fraction 0.25" for lr in (0.02828, 0.04, 0.05657)
    }
    assert known(tmp_path).keys() == {"Muon"}
    assert len(sitting(tmp_path, made_up(0.04))[0]) == 3 + 2  # those that failed are tried again


def t_distribution(x: float, freedom: int) -> float:
    """Return the probability that Student's t is at most x > 0, by Simpson's rule."""

    def density(t: float) -> float:
        return (1 + t * t / freedom) ** (-(freedom + 1) / 2)

    factor = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    pieces = 2000
    weights = [1, *[4, 2] * (pieces // 2 - 1), 4, 1]
    return 0.5 + factor * x / pieces / 3 * sum(w * density(x * i / pieces) for i, w in enumerate(weights))


@pytest.mark.parametrize("freedom", range(1, 31))
def test_quantiles_of_students_t(freedom: int) -> None:
    assert t_distribution(t_quantile(freedom), freedom) == pytest.approx(0.975, abs=3e-5)  # three digits


def test_intervals_against_known_numbers() -> None:
    # Student's own example: the additional hours of sleep of ten patients; 95 % interval 0.700 to 2.460.
    sleep = difference([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert sleep.half is not None
    assert (sleep.mean - sleep.half, sleep.mean + sleep.half) == pytest.approx((0.700, 2.460), abs=1e-3)
    assert not sleep.is_none
    assert str(difference([-0.1, 0.2])) == "none (+0.050 ± 1.906)"
    assert str(difference([0.5])) == "+0.500 (one seed)"


def test_differences_are_paired_over_common_seeds() -> None:
    found = paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.9, 1: 1.9, 7: 5.0})
    assert found is not None
    assert (found.number, found.mean) == (2, pytest.approx(0.1))
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: math.inf}, {0: 1.0}) is None


def test_steps_to_a_target() -> None:
    curve = [(10, 4.0), (20, 3.0), (30, 3.5), (40, 2.0)]
    assert steps_to(3.25, curve) == pytest.approx(17.5)
    assert steps_to(2.0, curve) == pytest.approx(40)
    assert steps_to(1.9, curve) is None
    assert steps_to(4.5, curve) is None


def test_steps_are_those_to_the_targets_mean_loss(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04, above=-0.25))
    muon, dion = known(tmp_path).values()
    assert muon.loss == statistics.fmean([1.0, 1.1, 1.2])
    assert muon.steps_to_target == pytest.approx(100)
    assert dion.steps_to_target == pytest.approx(50 + 50 * 0.75)


def test_the_page_shows_differences_over_settings_and_in_pairs(tmp_path: Path) -> None:
    wide = replace(PLAIN, name="wide", batch=16, seeds=(0,))
    experiment = replace(SET, entries=crossed((MUON, DION), (PLAIN, wide)), pairs=(("Muon", "Dion"),))
    sitting(tmp_path, made_up(0.04, above=0.25), experiment)
    text = page(experiment, by_key(read(tmp_path / "made-up.jsonl")), [])
    assert "| optimizer | plain | wide |" in text
    assert "| Muon | 1.100 | 1.000 |" in text
    assert "| Dion | +0.250 ± 0.000 | +0.250 (one seed) |" in text
    assert "| Muon | Dion | -0.250 ± 0.000 | -0.250 (one seed) |" in text
    assert "## Plain\n\nLLaMA 1M, 100 steps of 2048 tokens, momentum 0.8, 3 seeds:" in text
    assert "| Dion | 0.04 | 0.04 | 1.350 | +0.250 ± 0.000 |  | 10% |" in text


def test_the_page_marks_pairs_on_two_kinds_of_processor(tmp_path: Path) -> None:
    sitting(tmp_path, made_up(0.04, above=0.25))
    lines = read(tmp_path / "made-up.jsonl")
    gpu = {**WHERE, "machine": {"processor": "x", "gpu": "y"}}
    moved = [replace(line, where=gpu) if line.settings["optimizer"] == "dion" else line for line in lines]
    text = page(SET, by_key(moved), [])
    assert "from 10 runs on a CPU (x) and y." in text
    assert "| 1.350 | +0.250 ± 0.000 ¹ |" in text
    assert "¹ Some of these pairs ran on two kinds of processor" in text
    assert "¹" not in page(SET, by_key(lines), [])


def test_data_hold_no_number_that_is_none(tmp_path: Path) -> None:
    outcome = Outcome(held_out=((1, math.nan),), diverged=False, seconds=1.0, optimizer_share=0.1)
    cell = Cell(optimizer="muon", lr=1.0, seed=0, steps=1, batch=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        append(tmp_path / "x.jsonl", Line(settings=cell.settings, outcome=outcome, corpus="text", where=WHERE))
