"""The signature, the docstring and the rule of each optimizer know the same options with the same defaults."""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

import orthon
from orthon import Dion, Dion2, Dion3, MixedOptimizer, Muon, NorMuon
from orthon.algorithms import RULES
from orthon.optimizers import CommonOptions

OPTIMIZERS = [Dion, Muon, NorMuon, Dion2, Dion3]
SHARED = set(CommonOptions.__annotations__)
OF_MIXED = set(inspect.signature(MixedOptimizer).parameters) - {"params", "algorithm", "options"}

each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.__name__)


def options_of(make: Any) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of the constructor."""
    parameters = inspect.signature(make).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def described(of: Any, section: str) -> list[str]:
    """Return the names that a section of a docstring describes."""
    (text,) = re.findall(rf"^{section}:\n((?:    .*\n?|\n)+)", inspect.getdoc(of) or "", flags=re.MULTILINE)
    return re.findall(r"^    (\w+): \S", text, flags=re.MULTILINE)


@each_optimizer
def test_the_signature_is_flat(make: Any) -> None:
    first, second, *rest = inspect.signature(make).parameters.values()
    assert (first.name, second.name, second.kind) == ("params", "lr", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert {p.kind for p in rest} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.annotation is not inspect.Parameter.empty for p in (first, second, *rest))
    assert [p.name for p in rest if p.name in SHARED] == list(CommonOptions.__annotations__), "the shared ones are last"


@each_optimizer
def test_the_signature_has_the_options_of_the_rule(make: Any) -> None:
    rule, options = RULES[make.algorithm], options_of(make)
    assert set(options) == (rule.options.keys() - {"lr"}) | SHARED
    for name, option in rule.options.items():
        parameter = inspect.signature(make).parameters[name]
        assert parameter.default == option.default, name
        option.check(name, parameter.default, make.__name__)


@each_optimizer
def test_a_default_that_is_given_changes_nothing(make: Any) -> None:
    def groups(**options: Any) -> list[dict[str, Any]]:
        params = [("w", nn.Parameter(torch.zeros(3, 2)))]
        others = [{"params": [(name, nn.Parameter(torch.zeros(2)))], "algorithm": name} for name in ("adamw", "lion")]
        optimizer = make([{"params": params}, *others], **options)
        return [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]

    defaults = {name: p.default for name, p in options_of(make).items()}
    assert groups(**defaults, lr=inspect.signature(make).parameters["lr"].default) == groups()


def test_shared_options_have_one_default() -> None:
    for name in SHARED:
        defaults = {repr(options_of(make)[name].default) for make in OPTIMIZERS}
        of_rules = {repr(rule.options[name].default) for rule in RULES.values() if name in rule.options}
        assert len(defaults | of_rules) == 1, name
    for name in OF_MIXED:
        assert options_of(Dion)[name].default == inspect.signature(MixedOptimizer).parameters[name].default, name


@each_optimizer
def test_the_docstring_describes_its_own_options(make: Any) -> None:
    own = [name for name in options_of(make) if name not in SHARED]
    assert described(make, "Args") == ["params", "lr", *own]


@each_optimizer
def test_the_docstring_leads_to_the_shared_options(make: Any) -> None:
    assert "help(orthon.optimizers.CommonOptions)" in (make.__doc__ or "")
    assert described(orthon.optimizers.CommonOptions, "Attributes") == list(CommonOptions.__annotations__)


def test_a_subclass_has_its_own_signature() -> None:
    class Mine(Dion):
        def __init__(self, params: Any, *, rank: float) -> None:
            super().__init__(params, rank_fraction=rank)

    assert list(inspect.signature(Mine).parameters) == ["params", "rank"]
    assert Mine([nn.Parameter(torch.zeros(2, 2))], rank=0.5).param_groups[0]["rank_fraction"] == 0.5
