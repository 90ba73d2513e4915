import pytest

from orthon.train.settings.run import ScheduleConfig
from orthon.train.step.schedule import lr_factor


def factors(steps: int, **settings: object) -> list[float]:
    """The factors of all steps."""
    schedule = ScheduleConfig(**settings)  # type: ignore[arg-type]
    return [lr_factor(step, steps, schedule) for step in range(steps)]


def test_warmup_and_linear_decay() -> None:
    assert factors(10, warmup=0.2) == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_decay_to_a_final_factor() -> None:
    values = factors(100, warmup=0.1, decay="cosine", final=0.2)
    assert values[10] == 1
    assert values[55] == pytest.approx(0.6)
    assert values[99] == pytest.approx(0.2, abs=0.001)
    assert values[10:] == sorted(values[10:], reverse=True)


def test_constant_and_without_warmup() -> None:
    assert factors(4, warmup=0.0, decay="constant") == [1] * 4
    assert factors(4, warmup=1.0) == [0.25, 0.5, 0.75, 1]
    assert 0 < factors(1)[0] <= 1
