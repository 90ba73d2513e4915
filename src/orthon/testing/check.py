"""One function that holds a rule to all that Orthon promises of rules."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orthon.testing import parity
from orthon.testing.failures import RankError
from orthon.testing.formulas import MATRICES, OTHERS, FormulaCase, check_formulas
from orthon.testing.gradients import KINDS, ON_RANKS
from orthon.testing.invariants import check_maximize, check_saved, check_skipped
from orthon.testing.layouts import LAYOUTS, layouts_on
from orthon.testing.pool import MAX_WORLD, Pool
from orthon.testing.problems import OTHER_SHAPES, SHAPES, VIEWS, Case, Problem, takes_matrices
from orthon.testing.references import Reference
from orthon.testing.sources import Source, source_of
from orthon.testing.worker import MARK

WORLDS = (2, 4, 8)  # numbers of ranks that have layouts
Options = Mapping[str, Any]


@dataclass
class Report:
    """What a rule has passed.

    Attributes:
        rule: its name.
        cases: for each kind of check how many cases there were.
        worst: for each kind that compares numbers the largest relative error, and its case.
        seconds: how long all took.
    """

    rule: str
    cases: dict[str, int] = field(default_factory=dict)
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, kind: str, case: object, error: float | None = None) -> None:
        """Count a case that has passed."""
        self.cases[kind] = self.cases.get(kind, 0) + 1
        if error is not None and error >= self.worst.get(kind, (0.0, ""))[0]:
            self.worst[kind] = error, str(case)

    def __str__(self) -> str:
        lines = [f"{self.rule}: {sum(self.cases.values())} cases passed in {self.seconds:.0f} s"]
        for kind, count in self.cases.items():
            error, case = self.worst.get(kind, (None, ""))
            lines.append(f"  {kind}: {count}" + ("" if error is None else f", largest error {error:.1e} ({case})"))
        return "\n".join(lines)


def check_rule(
    name: str,
    *,
    reference: Reference | None = None,
    options: Options | Sequence[Options] | None = None,
    ranks: Sequence[int] = (2, 4),
    module: str | Path | None = None,
    pool: Pool | None = None,
    timeout: float = 120,
    progress: bool | None = None,
) -> Report:
    """Hold a registered update rule to one process, to its formulas, and to what holds of every rule.

    On every layout of each number of ranks, weights and state after five steps are those of one process, and replicas
    are equal bit by bit. With a reference, weight and state are those of the formulas, for many kinds of gradients and
    shapes. A step that nonfinite="skip" leaves out changes no bit, on the CPU and as on an accelerator, and a state
    that is saved and loaded goes on with the same bits. With `maximize`, negated gradients make the same steps. How
    large an error may be is measured: as large as what rounding of the gradients makes of one process, or of the
    reference.

    Args:
        name: of the rule, such as "dion", or one that `orthon.register_rule` knows.
        reference: the formulas: `reference(X, G, state, group)` makes a step with weight X and gradient G in float64,
            updates the state, a dict, which begins as the rule's, and returns the new weight; `group` has the options.
            Those of Orthon's rules are in `orthon.testing.references`.
        options: of the rule, or several sets of them, each of which is checked; not "view", which is chosen here.
        ranks: numbers of ranks, out of 2, 4 and 8; none checks one process alone.
        module: the name, or the path, of the module that registers the rule when worker processes import it. None:
            the one that defines the rule's update function.
        pool: worker processes that are running already. None: as many as are needed are started, and stopped again.
        timeout: in seconds, for a case on ranks.
        progress: whether to count the cases on stderr; None: if it is a terminal.

    Returns:
        How many cases have passed, and the largest errors.

    Raises:
        AssertionError: if something does not hold. It names the case, the error and what is allowed.
        TypeError, ValueError: for an argument that is not allowed.
        RuntimeError: in a worker process, which imports the module of the rule.
    """
    _check_arguments(reference, ranks, timeout, pool)
    source, begin = source_of(name, module), time.monotonic()
    sets = _labelled(name, options)
    report, shown = Report(name), sys.stderr.isatty() if progress is None else progress
    for error, kind, case in _all_checks(name, reference, sets, ranks, source, pool, timeout):
        report.add(kind, case, error)
        if shown:
            print(f"\r{name}: {sum(report.cases.values())} cases passed", end="", file=sys.stderr, flush=True)
    if shown:
        print(file=sys.stderr)
    report.seconds = time.monotonic() - begin
    return report


def _check_arguments(reference: object, ranks: object, timeout: object, pool: object) -> None:
    if MARK in os.environ:
        raise RuntimeError(
            "check_rule: a worker process has imported a module that calls check_rule itself; keep that call under "
            "if __name__ == '__main__'"
        )
    if reference is not None and not callable(reference):
        raise TypeError(f"check_rule: reference should be a function or None, but is {reference!r}")
    if not isinstance(ranks, list | tuple | set | range) or any(world not in WORLDS for world in ranks):
        raise ValueError(f"check_rule: ranks should be out of {WORLDS}, at most {MAX_WORLD}, but are {ranks!r}")
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"check_rule: timeout should be a number of seconds above 0, but is {timeout!r}")
    if pool is not None and not isinstance(pool, Pool):
        raise TypeError(f"check_rule: pool should be a Pool or None, but is {pool!r}")


def _labelled(name: str, options: Options | Sequence[Options] | None) -> dict[str, Options]:
    """Return the sets of options by what they are called in messages."""
    sets = [options or {}] if options is None or isinstance(options, Mapping) else list(options)
    if not sets or not all(isinstance(each, Mapping) for each in sets):
        raise ValueError(f"check_rule: options should be a dict of options, or a list of such, but are {options!r}")
    for each in sets:
        if "view" in each:
            raise ValueError("check_rule: options should not hold 'view', as matrices are read in many ways here")
    return {name + "".join(f", {k}={v!r}" for k, v in each.items()): each for each in sets}


Passed = tuple[float | None, str, object]  # error, kind of check, case


def _all_checks(
    name: str,
    reference: Reference | None,
    sets: dict[str, Options],
    ranks: Sequence[int],
    source: Source | None,
    pool: Pool | None,
    timeout: float,
) -> Iterator[Passed]:
    """Make all checks, those of one process first, as they find most mistakes, and soonest."""
    for label, options in sets.items():
        for on_device in (False, True):
            check_skipped(name, options, label, on_device=on_device)
            yield None, "skipped steps", label
        check_saved(name, options, label)
        yield None, "saved state", label
        check_maximize(name, options, label)
        yield None, "maximize", label
        for case in _formula_cases(name, label, options) if reference is not None else ():
            assert reference is not None
            yield check_formulas(case, reference), "against the reference", case
    if ranks:
        with nullcontext(pool) if pool is not None else Pool() as workers:
            for world in ranks:
                for on_ranks in cases_on_ranks(name, sets, world):
                    error = _on_ranks(workers, on_ranks, source, timeout)
                    yield error, f"{world} ranks against one process", on_ranks


def _formula_cases(rule: str, label: str, options: Options) -> Iterator[FormulaCase]:
    for shape in MATRICES if takes_matrices(rule) else {**MATRICES, **OTHERS}:
        for gradients in KINDS:
            yield FormulaCase(rule, options, label, shape, gradients)


def cases_on_ranks(rule: str, sets: Mapping[str, Options], world: int) -> Iterator[Case]:
    """Yield for every layout and set of options a case of plain parameters, and one of other kinds of parameters.

    Shapes and gradients come in turn. Where the replicas' gradients differ, their mean leaves rounding in place of
    zeros, of which a rule that takes signs or divides by sizes makes an update, as it should: there all have full rank.
    """
    others = list(VIEWS if takes_matrices(rule) else OTHER_SHAPES)
    for i, layout in enumerate(layouts_on(world)):
        for j, (label, options) in enumerate(sets.items()):
            turn = i + 5 * j
            for shapes, kind in ((list(SHAPES)[turn % len(SHAPES)], turn), (others[turn % len(others)], turn + 1)):
                if shapes == "vectors" and 1 in LAYOUTS[layout].dims:
                    continue
                gradients = "full rank" if LAYOUTS[layout].compressed else list(ON_RANKS)[kind % len(ON_RANKS)]
                yield Case(layout, Problem(rule, options, label, shapes, gradients, torch.float64, world))


def _on_ranks(pool: Pool, case: Case, source: Source | None, timeout: float) -> float:
    try:
        results = pool.run(case.problem.world, parity.on_this_rank, case, source, timeout=timeout)
    except RankError as error:
        raise AssertionError(f"{case}: {error}") from error
    return parity.check(case, results)
