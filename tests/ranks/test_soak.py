"""The short form of the soak run, `make soak`."""

import pytest

from orthon.testing import Pool
from tests.soak.plan import PLACES, plan
from tests.soak.run import LARGEST_DEVIATION, deviations, soak

LONGEST = 3
# Steps, seed, and on how many places: with crashes, bad gradients and a late rank, on 1, 2 and 4 ranks.
SHORT, ON_EVERY_PLACE = (12, 15657, 8), (24, 88, len(PLACES))


def test_the_plan_goes_on_from_the_newest_checkpoint_and_ends() -> None:
    segments = plan(2000, 0)
    newest = 0
    for segment in segments:
        assert segment.start == newest
        newest = max(segment.saves, default=segment.start)
        assert segment.kept == newest
        assert all(segment.start < save <= segment.stop for save in segment.saves)
    assert newest == 2000
    assert {(segment.kind, segment.world) for segment in segments} == set(PLACES)
    assert any(segment.crashes for segment in segments)


@pytest.mark.parametrize(
    ("steps", "seed", "places"), [SHORT, pytest.param(*ON_EVERY_PLACE, marks=pytest.mark.long)], ids=str
)
def test_copies_stay_equal_and_losses_are_those_of_one_process(ranks: Pool, steps: int, seed: int, places: int) -> None:
    segments = plan(steps, seed, longest=LONGEST)
    assert len({(segment.kind, segment.world) for segment in segments}) == places
    assert any(segment.crashes for segment in segments)
    course = soak(ranks, steps=steps, seed=seed, longest=LONGEST)
    assert len(course.losses) == steps
    assert len(course.memory) == len(segments)
    assert course.executed > steps  # some after a crash again
    assert course.skipped > 0
    errors = deviations(course, seed)
    assert max(errors) < LARGEST_DEVIATION, f"from step {errors.index(max(errors))}: {errors}"
