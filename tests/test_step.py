"""Computations that take turns."""

import pytest

from orthon.sharding import Step, run


def counted(name: str, pauses: int, log: list[str]) -> Step[None]:
    log.append(f"{name} starts")
    for i in range(pauses):
        yield []
        log.append(f"{name} {i}")


def test_they_take_turns_and_no_more_start_than_allowed() -> None:
    log: list[str] = []
    run(([counted(name, pauses, log)] for name, pauses in (("a", 2), ("b", 1), ("c", 1))), at_once=2)
    assert log == ["a starts", "b starts", "a 0", "b 0", "a 1", "c starts", "c 0"]


def test_one_after_the_other() -> None:
    log: list[str] = []
    run(([counted(name, 1, log)] for name in "ab"), at_once=1)
    assert log == ["a starts", "a 0", "b starts", "b 0"]


def test_what_never_pauses_runs_through() -> None:
    log: list[str] = []
    run(([counted(name, 0, log)] for name in "abc"), at_once=2)
    assert log == ["a starts", "b starts", "c starts"]


def test_an_error_reaches_the_caller() -> None:
    def fails() -> Step[None]:
        yield []
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run([[fails()]], at_once=2)
