"""The examples run, are short and quick, and train."""

import re
from pathlib import Path

import pytest

from tests.support.examples import FOLDER, MOST_LINES, MOST_SECONDS, Ran, assert_learns, run

ELSEWHERE = {"torchtitan_container"}  # needs the packages of `make test-integrations`
WITHOUT_LOSS = {"plan_a_run"}
EXAMPLES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short_and_says_what_it_is(name: str) -> None:
    lines = EXAMPLES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert re.match(r'"""[A-Za-z].*[^"]$', lines[0])


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - ELSEWHERE - WITHOUT_LOSS))
def test_it_runs_and_the_loss_falls(name: str) -> None:
    ran = run(EXAMPLES[name])
    assert_learns(ran)
    assert ran.seconds < MOST_SECONDS
    if name in MORE:
        MORE[name](ran)


def test_a_plan() -> None:
    ran = run(EXAMPLES["plan_a_run"])
    rows = [line.split("  ")[0] for line in ran.printed.splitlines() if line.endswith("yes")]
    assert rows == ["Dion 1/4", "Dion 1/16", "Muon", "Dion2 1/4"]
    assert ran.seconds < MOST_SECONDS


def goes_on_elsewhere(ran: Ran) -> None:
    """The losses on the second mesh are those that the first one would have had."""
    first, second = ran.losses["2 shards x 2 TP"], ran.losses["4 shards"]
    assert second == pytest.approx(first[-len(second) :], abs=1e-3)
    assert len(second) == 3


def sends_less(ran: Ran) -> None:
    found = re.search(r"a step sends (\d+) kB; with gradients averaged in full it would be (\d+) kB", ran.printed)
    assert found
    assert int(found[1]) < int(found[2]) / 4


def goes_on_from_the_saved_state(ran: Ran) -> None:
    (losses,) = ran.losses.values()
    assert losses[-3:] == losses[-6:-3]


MORE = {
    "fsdp_tp_checkpoint": goes_on_elsewhere,
    "hsdp_compressed": sends_less,
    "accelerate_loop": goes_on_from_the_saved_state,
}


def test_what_is_run_elsewhere_is_there() -> None:
    folder = Path(__file__).parent / "integrations"
    assert EXAMPLES.keys() >= ELSEWHERE
    assert all(name in (folder / "test_examples_of_packages.py").read_text(encoding="utf-8") for name in ELSEWHERE)
