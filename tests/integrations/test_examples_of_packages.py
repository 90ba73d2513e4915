"""The examples that need other people's packages: they run, are quick, and train."""

import pytest

from tests.support.examples import FOLDER, MOST_SECONDS, assert_learns, run


@pytest.mark.parametrize("name", ["hf_trainer", "torchtitan_container"])
def test_it_runs_and_the_loss_falls(name: str) -> None:
    ran = run(FOLDER / f"{name}.py")
    assert_learns(ran)
    assert ran.seconds < MOST_SECONDS
