"""Rules that other packages register: what is taken, what is refused, and what no rule can do."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon.algorithms import (
    RULES,
    Batch,
    Counter,
    Effort,
    Elementwise,
    Entry,
    LowRank,
    LowRankMomentum,
    Rows,
    Rule,
    SelectedRows,
    Step,
    WholeMatrix,
    Work,
    added_gradients,
    flag,
    number,
    register_rule,
    selected,
)
from orthon.testing import check_rule
from orthon.testing.invariants import accelerated

EXAMPLE = Path(__file__).parents[1] / "examples" / "adamuon.py"


@pytest.fixture(autouse=True)
def forget_rules() -> Iterator[None]:
    known = dict(RULES)
    yield
    RULES.clear()
    RULES.update(known)


def steepest(batch: Batch) -> None:
    """The four lines of somebody who has never heard of steps that are left out."""
    M = batch.kept("momentum")
    M.mul_(0.9)
    M.add_(batch.G if not batch.of_matrices else torch.stack(list(batch.G)))
    batch.descend(M.value if batch.of_matrices else M.parts)


def dividing(batch: Batch) -> None:
    """Without a gradient this divides zero by zero."""
    directions = [G / G.norm() for G in batch.G]
    M = batch.kept("momentum")
    M.lerp_(directions if not batch.of_matrices else torch.stack(directions), 0.1)
    M.add_(directions if not batch.of_matrices else torch.stack(directions), 0.1)
    batch.descend(directions)


def sloppy(batch: Batch) -> None:
    for X, G in zip(batch.weights, batch.grads, strict=True):
        X.sub_(G, alpha=0.1)


def sloppy_with_state(batch: Batch) -> None:
    for state in batch.state:
        state["momentum"].add_(1)
    batch.descend(batch.G)


MOMENTUM = {"momentum": Entry()}
STEEPEST = Rule("steepest", steepest, MOMENTUM, Elementwise(), {})


def params() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 6, generator=generator)) for _ in range(3)]


def give_gradients(to: list[nn.Parameter], *, bad: bool = False) -> None:
    for i, p in enumerate(to):
        p.grad = torch.full_like(p, 0.5 + i)
    if bad:
        assert to[0].grad is not None
        to[0].grad[0, 0] = float("nan")


def contents(to: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.detach().clone() for p in to] + [v.clone() for p in to for v in optimizer.state[p].values()]


@pytest.mark.parametrize("where", [nullcontext, accelerated], ids=["CPU", "accelerator"])
@pytest.mark.parametrize("work", [Elementwise(), WholeMatrix()], ids=lambda work: type(work).__name__)
@pytest.mark.parametrize("rule", [steepest, dividing])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_naive_rule_changes_nothing_in_a_step_that_is_left_out(
    rule: Any, work: Work, where: Any, cautious: bool, earlier: int
) -> None:
    register_rule(Rule("naive", rule, MOMENTUM, work, {}))
    to = params()
    options = {"cautious_weight_decay": cautious}
    optimizer = orthon.MixedOptimizer(to, algorithm="naive", options=options, nonfinite="skip")
    with where():
        for _ in range(earlier):
            give_gradients(to)
            optimizer.step()
        before = contents(to, optimizer)
        give_gradients(to, bad=True)
        optimizer.step()
        after = contents(to, optimizer)
        assert optimizer.skipped_steps == 1
        for old, new in zip(before, after, strict=False):
            assert torch.equal(old, new)
        give_gradients(to)
        optimizer.step()
    assert not torch.equal(before[0], to[0])
    assert all(value.isfinite().all() for value in contents(to, optimizer))


@pytest.mark.parametrize("rule", [sloppy, sloppy_with_state])
def test_a_rule_that_writes_by_itself_is_refused_where_steps_may_be_left_out(rule: Any) -> None:
    register_rule(Rule("sloppy", rule, MOMENTUM, Elementwise(), {}))
    to = params()
    optimizer = orthon.MixedOptimizer(to, algorithm="sloppy", options={}, nonfinite="skip")
    give_gradients(to)
    with pytest.raises(RuntimeError, match=r"the rule 'sloppy' has written to weights or state without the verbs"):
        optimizer.step()


class OtherEffort(WholeMatrix):
    """As an author might begin whose work takes another effort."""

    def effort(self, *_: Any) -> Effort:
        return Effort(1.0)


class HalfWork(Work):
    def routes(self, *_: Any) -> tuple[str, ...]:
        return ("owners",)


class NoMatrixOptions(Work):
    takes_matrices = True


class RankOfNothing(Work):
    def update_rank(self, *_: Any) -> int:
        return 1


class TailOfNothing(Work):
    def has_tail(self, *_: Any) -> bool:
        return True


class CopiesOfNothing(Work):
    copies_divide_matrices = True


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no rule": ("steepest", TypeError, "rule should be a Rule, but is a str"),
    "a name with a space": (replace(STEEPEST, name="my rule"), ValueError, "name should be a Python identifier"),
    "the name of another": (replace(STEEPEST, name="muon"), ValueError, r"name is taken by orthon\.algorithms\.muon"),
    "the second name of another": (replace(STEEPEST, name="nordion2"), ValueError, "taken, as a second name of dion3"),
    "that name in upper case": (replace(STEEPEST, name="NorDion2"), ValueError, "taken, as a second name of dion3"),
    "routes without effort": (
        replace(STEEPEST, work=HalfWork()),
        ValueError,
        "HalfWork has routes without effort; both belong together",
    ),
    "matrices without their options": (
        replace(STEEPEST, work=NoMatrixOptions()),
        ValueError,
        "NoMatrixOptions lacks the options 'adjust_lr_fn', 'state_dtype', 'seed', 'view'",
    ),
    **{
        f"{answer} without matrices": (
            replace(STEEPEST, work=work),
            ValueError,
            f"{type(work).__name__} has {answer}, which",
        )
        for answer, work in {
            "update_rank": RankOfNothing(),
            "has_tail": TailOfNothing(),
            "copies_divide_matrices": CopiesOfNothing(),
        }.items()
    },
    "a side without matrices": (
        replace(STEEPEST, entries={"moment": Entry(side=0)}),
        ValueError,
        "the entry 'moment' lies along a side, but steepest takes no matrices",
    ),
    "low rank without Q": (
        Rule("mine", steepest, MOMENTUM, LowRank(), {}),
        ValueError,
        r"LowRank works on the state 'Q', which entries\(\) lacks",
    ),
    "rows without momentum": (
        Rule("mine", steepest, {"step": Counter()}, SelectedRows(), {}),
        ValueError,
        "SelectedRows works on the state 'momentum'",
    ),
    "no entry": (replace(STEEPEST, entries={"momentum": torch.float32}), TypeError, "should be an Entry or a Counter"),
    "no option": (replace(STEEPEST, options={"speed": 3}), TypeError, "option 'speed' should be an Option"),
    "a reserved name": (
        replace(STEEPEST, options={"params": flag(False)}),
        ValueError,
        "an option should have a name that is a Python identifier, and none of .*, but has 'params'",
    ),
    "another meaning of maximize": (
        replace(STEEPEST, options={"maximize": number(0.9, ">= 0", lambda v: v >= 0)}),
        TypeError,
        "default: maximize should be True or False, but is 0.9",
    ),
    "a key with a dot": (replace(STEEPEST, entries={"a.b": Entry()}), ValueError, "the key of an entry should be a"),
    "a default that is not allowed": (
        replace(STEEPEST, options={"fast": flag(3)}),  # type: ignore[arg-type]
        TypeError,
        "default: fast should be True or False, but is 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_together_is_refused_at_registration(case: str) -> None:
    rule, error, message = REFUSED[case]
    before = dict(RULES)
    with pytest.raises(error, match=message):
        register_rule(rule)
    assert before == RULES


PARTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "the class of the work": ({"work": WholeMatrix}, TypeError, "work should be one of Elementwise"),
    "no work": ({"work": None}, TypeError, "work should be one of Elementwise"),
    "no update": ({"update": None}, TypeError, "update should be a function of a batch, but is None"),
    "no entries": ({"entries": None}, TypeError, "entries should be a dict or a function"),
    "a list of options": ({"options": ["lr"]}, TypeError, "options should be a dict"),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_part_of_another_kind_is_refused_at_once(case: str) -> None:
    parts, error, message = PARTS[case]
    whole = {"name": "mine", "update": steepest, "entries": MOMENTUM, "work": Elementwise(), "options": {}}
    with pytest.raises(error, match=message):
        Rule(**{**whole, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"side": 2}, ValueError, "side should be 0, 1 or None, but is 2"),
        ({"width": 2}, ValueError, "width should be an integer >= 1, and 1 without a side"),
        ({"side": 0, "width": 0}, ValueError, "width should be an integer >= 1"),
        ({"dtype": torch.int64}, TypeError, "dtype should be a floating dtype"),
        ({"dtype": "float32"}, TypeError, "dtype should be a floating dtype"),
        ({"std": -1.0}, ValueError, "std should be a number >= 0"),
        ({"std": float("nan")}, ValueError, "std should be a number >= 0"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Entry(**given)


def misshapen(batch: Batch) -> None:
    batch.kept("momentum").add_(batch.G[:1])


def too_narrow(batch: Batch) -> None:
    batch.descend([G[:, :1] for G in batch.G])


def too_few(batch: Batch) -> None:
    batch.descend(torch.stack(list(batch.G))[:1])


def unknown(batch: Batch) -> None:
    batch.kept("nope")


@pytest.mark.parametrize("work", [Elementwise(), WholeMatrix()], ids=lambda work: type(work).__name__)
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (misshapen, r"kept\('momentum'\): should be given the shapes \[.*, but is given \[\(4, 6\)\]"),
        (too_narrow, r"batch.descend: updates should have the shapes .*, but have \[\(4, 1\)"),
        (too_few, "batch.descend: updates should have the shapes"),
        (unknown, r"kept\('nope'\): the rule keeps 'momentum', but not that"),
    ],
)
def test_verbs_refuse_what_does_not_fit(rule: Any, message: str, work: Work) -> None:
    register_rule(Rule("misshapen", rule, MOMENTUM, work, {}))
    to = params()
    optimizer = orthon.MixedOptimizer(to, algorithm="misshapen", options={})
    give_gradients(to)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("factor", [1e-10, 1e-3, 0.9])
def test_verbs_multiply_exactly(factor: float, nonfinite: str) -> None:
    def shrinking(batch: Batch) -> None:
        M = batch.kept("momentum")
        M.copy_(batch.G)
        M.mul_(factor)
        batch.kept("added").add_(batch.G, factor)
        batch.kept("neared").lerp_(batch.G, factor)

    zeros = dict.fromkeys(("momentum", "added", "neared"), Entry())
    register_rule(Rule("shrinking", shrinking, zeros, WholeMatrix(), {}))
    to = [nn.Parameter(p.detach().double()) for p in params()]
    optimizer = orthon.MixedOptimizer(to, algorithm="shrinking", options={}, nonfinite=nonfinite)
    give_gradients(to)
    optimizer.step()
    for p in to:
        assert p.grad is not None
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, p.grad * factor), key


def test_the_page_about_rules_has_every_question() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    table = page.partition("These are the questions.")[2].partition("## ")[0]
    for question in vars(Work):
        assert question.startswith("_") or f"`{question}`" in table, question


def test_what_runs_twice_may_register_twice() -> None:
    register_rule(STEEPEST)
    again = replace(STEEPEST)
    assert register_rule(again) is again
    assert RULES["steepest"] is again


def alternating(batch: Batch) -> Step[None]:
    """Dion without error feedback, which looks neither ahead nor back."""
    M = LowRankMomentum(batch)
    yield from M.add_gradients()
    P = yield from M.left()
    yield from M.descend(P, (yield from M.right(P)))


def rows_first(batch: Batch) -> Step[None]:
    M, norms = added_gradients(batch, norms=True)
    O = yield from Rows.taken(M, batch, (yield from selected(norms, batch))).polar()
    O.descend()


@pytest.mark.parametrize(
    ("rule", "work"), [(alternating, LowRank()), (rows_first, SelectedRows()), (steepest, WholeMatrix())]
)
def test_a_kind_of_work_brings_the_options_that_it_reads(rule: Any, work: Any) -> None:
    entries = MOMENTUM if isinstance(work, WholeMatrix) else work.entries
    register_rule(Rule("mine", rule, entries, work, {}))
    to = params()
    before = contents(to, optimizer := orthon.MixedOptimizer(to, algorithm="mine", options={}))
    give_gradients(to)
    optimizer.step()
    assert not torch.equal(before[0], to[0])


@pytest.mark.parametrize(
    ("verbs", "message"),
    [
        (["left"], "add_gradients comes before left"),
        (["add_gradients", "right"], "left comes before right"),
        (["add_gradients", "left", "descend"], "right comes before descend"),
        (["add_gradients", "left", "fade"], "right comes before fade"),
    ],
)
def test_verbs_of_low_rank_in_another_order_are_refused(verbs: list[str], message: str) -> None:
    def hasty(batch: Batch) -> Step[None]:
        M, P = LowRankMomentum(batch), torch.ones(3, 4, 1)
        given = {"right": (P,), "descend": (P, P), "fade": (P, P)}
        for verb in verbs:
            yield from getattr(M, verb)(*given.get(verb, ()))

    register_rule(Rule("hasty", hasty, LowRank().entries, LowRank(), {}))
    to = params()
    give_gradients(to)
    with pytest.raises(AssertionError, match=message):
        orthon.MixedOptimizer(to, algorithm="hasty", options={}).step()


def test_a_rule_that_only_needs_another_effort_takes_over_the_rest() -> None:
    register_rule(Rule("mine", steepest, MOMENTUM, OtherEffort(), {}))
    assert RULES["mine"].options.keys() == WholeMatrix().options.keys()


def reference(X: Tensor, G: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """AdaMuon by its formulas, in float64."""
    M = state["momentum"] = group["momentum"] * state["momentum"] + G
    W, S, Vt = torch.linalg.svd(torch.sign(M), full_matrices=False)
    O = (W * (1e-12 * S.max().clamp(min=1e-300) < S)) @ Vt
    V = state["second_moment"] = group["beta2"] * state["second_moment"] + (1 - group["beta2"]) * O**2
    N = O / (V.sqrt() + group["eps"])
    m, n = X.shape
    if N.any():
        N = N / N.norm() * (m * n) ** 0.5  # so that entries are of size 1
    return (1 - group["lr"] * group["weight_decay"]) * X - group["lr"] * 0.2 * N


def test_the_example_of_a_rule_keeps_what_is_promised_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    try:
        sys.modules.pop("adamuon", None)  # another test may have imported it, and forgotten its rule
        __import__("adamuon")
        report = check_rule("adamuon", reference=reference, options={"polar": "svd"}, ranks=(2,))
        assert sum(report.cases.values()) > 50
    finally:
        sys.modules.pop("adamuon", None)


def test_a_step_of_a_rule_may_be_a_generator_or_not() -> None:
    def pausing(batch: Batch) -> Step[None]:
        yield from ()
        batch.descend(batch.G)

    def at_once(batch: Batch) -> None:
        batch.descend(batch.G)

    found = []
    for name, rule in (("pausing", pausing), ("at_once", at_once)):
        register_rule(Rule(name, rule, {}, Elementwise(), {}))
        to = params()
        give_gradients(to)
        orthon.MixedOptimizer(to, algorithm=name, options={"lr": 0.1}).step()
        found.append(to[0].detach())
    assert torch.equal(*found)
