"""The update rules, one file each; a file that defines `RULE` is found by itself."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from orthon.algorithms.rule import Rule

__all__ = ["RULES", "Rule"]


def _find() -> dict[str, Rule]:
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    rules = [module.RULE for module in modules if hasattr(module, "RULE")]
    return {rule.name: rule for rule in rules}


RULES: Mapping[str, Rule] = _find()
