"""For the reference in the docs: the flat signatures of the optimizers, which their source alone does not show.

mkdocstrings reads the source without running it. `orthon.optimizers.signature` makes signatures of `**options` when
Orthon is imported; this extension of griffe puts them in place.
"""

import inspect
import re
from typing import Any

import griffe


class FlatSignatures(griffe.Extension):
    """Takes the parameters of a constructor with `**options: Unpack[...]` from the imported class."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Replace the parameters of a constructor."""
        if func.name != "__init__" or not any("Unpack[" in str(p.annotation) for p in func.parameters):
            return
        written = {p.name: p for p in func.parameters}
        made = inspect.signature(griffe.dynamic_import(func.path)).parameters.values()
        func.parameters = griffe.Parameters(*(_parameter(p, written.get(p.name)) for p in made))


def _parameter(made: inspect.Parameter, written: griffe.Parameter | None) -> griffe.Parameter:
    default = None if made.default is inspect.Parameter.empty else repr(made.default)
    if written is not None:
        written.default = default
        return written
    # Classes by their names alone: the modules that define them are not those that people import them from.
    annotation = re.sub(r"\b(?:[a-z0-9_]+\.)+(?=[A-Z])", "", inspect.formatannotation(made.annotation))
    return griffe.Parameter(made.name, annotation=annotation, kind=griffe.ParameterKind.keyword_only, default=default)
