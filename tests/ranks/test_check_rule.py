"""The harness for authors of rules: Orthon's own rules pass, and faults are found and named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from orthon.algorithms import RULES
from orthon.testing import Pool, check_rule, references
from tests.rules_table import EXACT, POLAR_RULES

OPTIONS: dict[str, dict[str, Any]] = {rule: EXACT if rule in POLAR_RULES else {} for rule in references.REFERENCES}


@pytest.mark.parametrize("rule", OPTIONS)
def test_own_rules_pass_in_one_process(rule: str) -> None:
    report = check_rule(rule, reference=references.REFERENCES[rule], options=OPTIONS[rule], ranks=())
    assert report.cases["skipped steps"] == 2
    assert report.cases["saved state"] == 1
    assert report.cases["against the reference"] == (50 if RULES[rule].work.takes_matrices else 70)


@pytest.mark.parametrize(
    ("rule", "worlds"),
    [
        ("lion", [2]),
        ("adamw", [2]),
        *(pytest.param(rule, [2, 4, 8], marks=pytest.mark.long) for rule in OPTIONS),
    ],
)
def test_own_rules_pass_on_ranks(ranks: Pool, rule: str, worlds: list[int]) -> None:
    report = check_rule(rule, options=OPTIONS[rule], ranks=worlds, pool=ranks)
    assert all(report.cases[f"{world} ranks against one process"] >= 19 for world in worlds)
    lines = str(report).splitlines()
    assert lines[0].startswith(f"{rule}: {sum(report.cases.values())} cases passed in ")
    assert "largest error" in lines[-1]


# Rules of authors, with faults. Each is Lion, with something about it.

HEAD = """
from dataclasses import replace
import torch.distributed as dist
from orthon.algorithms import RULES, register_rule

lion = RULES["lion"].update
seen = []
"""

BODIES = {
    # This is right.
    "outside": "    lion(batch)\n",
    # The first rank takes other steps than the others.
    "by_rank": (
        "    lion(batch)\n"
        "    if dist.is_initialized() and dist.get_rank() == 0:\n"
        "        for X in batch.weights.parts if hasattr(batch.weights, 'parts') else batch.weights:\n"
        "            X.mul_(1.0001)\n"
    ),
    # What it keeps is not in its state: it forgets it where the state is loaded, and counts steps that are left out.
    "forgetful": (
        "    seen.append(batch)\n"
        "    for G in batch.grads:\n"
        "        G.mul_(-1 if len(seen) % 3 == 0 else 1)\n"
        "    lion(batch)\n"
    ),
}


def source(name: str) -> str:
    return (
        f"{HEAD}\n\ndef update(batch):\n{BODIES[name]}\n\n"
        f'register_rule(replace(RULES["lion"], name="{name}", update=update))\n'
    )


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    """Return a function that writes and imports the module of a rule, which is forgotten again."""
    before = {*RULES}

    def write(name: str) -> Path:
        path = tmp_path / f"rule_{name}.py"
        path.write_text(source(name))
        spec = util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return path

    yield write
    for name in {*RULES} - before:
        del RULES[name]
        sys.modules.pop(f"rule_{name}")


def test_a_rule_from_outside_passes_wherever_its_module_is(ranks: Pool, written: Any) -> None:
    path = written("outside")
    for module in (None, path):
        report = check_rule("outside", reference=references.lion, ranks=[2], module=module, pool=ranks)
        assert report.cases["2 ranks against one process"] >= 19


def test_ranks_that_differ_are_found(ranks: Pool, written: Any) -> None:
    written("by_rank")
    with pytest.raises(AssertionError, match=r"2 ranks, unaware, even, gradients full rank, by_rank, float64: weight"):
        check_rule("by_rank", ranks=[2], pool=ranks)


def test_what_is_not_in_the_state_is_found(written: Any) -> None:
    written("forgetful")
    with pytest.raises(AssertionError, match=r"skipped steps, on the CPU, forgetful, float32: .* by \S+, allowed 0"):
        check_rule("forgetful", ranks=[])


def test_formulas_that_differ_are_found() -> None:
    def wrong(X: Tensor, G: Tensor, state: dict[str, Tensor], group: Any) -> Tensor:
        return references.lion(X, G, state, {**group, "weight_decay": 1.001 * group["weight_decay"]})

    with pytest.raises(
        AssertionError,
        match=r"against the reference, tall, gradients full_rank, lion, float64: the weight has relative error \S+, "
        "allowed 1e-10",
    ):
        check_rule("lion", reference=wrong, ranks=[])


def test_a_state_that_the_reference_does_not_have_is_found() -> None:
    def wrong(X: Tensor, G: Tensor, state: dict[str, Tensor], group: Any) -> Tensor:
        state["more"] = G
        return references.lion(X, G, state, group)

    with pytest.raises(AssertionError, match="more should be in the state of both rule and reference"):
        check_rule("lion", reference=wrong, ranks=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lyon"}, "name should be one of .*'lion'.*, but is 'lyon'"),
        ({"ranks": [3]}, r"ranks should be out of \(2, 4, 8\), .* but are \[3\]"),
        ({"options": [{}, {"view": None}]}, "options should not hold 'view'"),
        ({"module": "nowhere/to/be/found.py"}, "module should be the path of a file, but there is no 'nowhere"),
    ],
)
def test_arguments_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rule(**{"name": "lion", **options})


def test_a_script_that_checks_without_a_guard_is_told_so_by_its_workers(tmp_path: Path) -> None:
    """Each worker imports it, and would start workers of its own."""
    script = tmp_path / "unguarded.py"
    script.write_text(
        f"{source('outside')}\nfrom orthon.testing import check_rule\n"
        "print(check_rule('outside', ranks=[2], module=__file__))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert "keep that call under if __name__ == '__main__'" in done.stderr


def test_a_script_checks_the_rule_that_it_registers(tmp_path: Path) -> None:
    """It says where its rule is, and is not run again in the workers but for what registers it."""
    script = tmp_path / "rule.py"
    call = 'check_rule("outside", ranks=[2]'
    script.write_text(
        f"{source('outside')}\nif __name__ == '__main__':\n    from orthon.testing import check_rule\n"
        f"    try:\n        {call})\n    except ValueError as error:\n        print(error)\n"
        f"    print({call}, module=__file__))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines = subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True, env=environment, cwd="/"
    ).stdout.splitlines()
    assert "module should say where the workers find the rule 'outside'" in lines[0]
    assert lines[1].startswith("outside: ")
    assert lines[-1].startswith("  2 ranks against one process: 19, largest error")
