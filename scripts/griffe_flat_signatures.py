"""For the API pages: the flat signatures of the optimizers, and what each option allows.

mkdocstrings reads the source without running it. `orthon.optimizers.signature` makes signatures of `**options` when
Orthon is imported; this extension of griffe puts them in place. Ranges and defaults are in the rules, so that no
docstring writes them again.
"""

import inspect
import re
from typing import Any

import griffe

from orthon.algorithms import RULES
from orthon.optimizers import CommonOptions
from orthon.optimizers.common import SHARED, NamedOptimizer
from orthon.optimizers.signature import default_of


class FlatSignatures(griffe.Extension):
    """Takes from the imported classes what their source alone does not show."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Replace the parameters of a constructor with `**options: Unpack[...]`."""
        _tidy(func)
        if func.name != "__init__" or not any("Unpack[" in str(p.annotation) for p in func.parameters):
            return
        written = {p.name: p for p in func.parameters}
        made = inspect.signature(griffe.dynamic_import(func.path)).parameters.values()
        func.parameters = griffe.Parameters(*(_parameter(p, written.get(p.name)) for p in made))

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Say in the docstring of an optimizer what each option allows, and of the shared ones their defaults."""
        _tidy(cls)
        if cls.docstring is None or not cls.path.startswith("orthon.optimizers."):
            return
        found = griffe.dynamic_import(cls.path)
        if isinstance(found, type) and issubclass(found, NamedOptimizer) and hasattr(found, "algorithm"):
            cls.docstring.value = with_ranges(cls.docstring.value, found.algorithm)
        elif found is CommonOptions:
            cls.docstring.value = with_ranges(cls.docstring.value, "dion", defaults=True)


def as_markdown(text: str) -> str:
    """Return a docstring as a page in docs/api has it: no double colons, and files of docs as links."""
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return re.sub(r"\bdocs/([\w/-]+)\.md\b", r"[\1](../\1.md)", text)


def with_ranges(text: str, algorithm: str, *, defaults: bool = False) -> str:
    """Return a docstring that says, before the description of each option, what it allows."""

    def told(found: re.Match[str]) -> str:
        name = found[1]
        rule = next((RULES[key] for key in (algorithm, "normuon", "adamw") if name in RULES[key].options), None)
        parts = [] if rule is None or name == "lr" else [rule.options[name].allowed]
        if defaults and name in SHARED:
            parts.append(f"default {default_of(name, algorithm)!r}")
        return f"{found[0]}({'; '.join(parts)}) " if parts else found[0]

    return re.sub(r"^    (\w+): ", told, text, flags=re.MULTILINE)


def _tidy(found: griffe.Class | griffe.Function) -> None:
    if found.docstring is not None:
        found.docstring.value = as_markdown(found.docstring.value)


def _parameter(made: inspect.Parameter, written: griffe.Parameter | None) -> griffe.Parameter:
    default = None if made.default is inspect.Parameter.empty else repr(made.default)
    if written is not None:
        written.default = default
        return written
    # Classes by their names alone: the modules that define them are not those that people import them from.
    annotation = re.sub(r"\b(?:[a-z0-9_]+\.)+(?=[A-Z])", "", inspect.formatannotation(made.annotation))
    return griffe.Parameter(made.name, annotation=annotation, kind=griffe.ParameterKind.keyword_only, default=default)
