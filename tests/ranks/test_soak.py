"""The short form of the soak run, `make soak`."""

from orthon.testing import Pool
from tests.soak.plan import PLACES, plan
from tests.soak.run import LARGEST_DEVIATION, deviations, soak

STEPS, SEED, LONGEST = 24, 88, 3  # on every place, with 3 crashes, 5 bad gradients and a late rank


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


def test_copies_stay_equal_and_losses_are_those_of_one_process(ranks: Pool) -> None:
    course = soak(ranks, steps=STEPS, seed=SEED, longest=LONGEST)
    assert len(course.losses) == STEPS
    assert len(course.memory) > len(PLACES)
    assert course.executed > STEPS  # some after a crash again
    assert course.skipped > 0
    errors = deviations(course, SEED)
    assert max(errors) < LARGEST_DEVIATION, f"from step {errors.index(max(errors))}: {errors}"
