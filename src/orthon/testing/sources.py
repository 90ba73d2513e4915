"""Where a rule of an author is registered, so that worker processes can register it as well."""

import sys
from importlib import import_module, util
from pathlib import Path
from typing import NamedTuple

from orthon.algorithms import RULES


class Source(NamedTuple):
    """A module that registers a rule when it is imported.

    Attributes:
        name: of the module.
        path: of its file, for a module that cannot be found by its name; empty if there is none.
    """

    name: str
    path: str


def source_of(rule: str, module: str | Path | None) -> Source | None:
    """Return where a registered rule comes from, None for one of Orthon's.

    Args:
        rule: its name.
        module: the name or the path of the module that registers it; None: the one that defines its update function.

    Raises:
        ValueError: if there is no such rule or module, or it is the script that runs.
    """
    if rule not in RULES:
        raise ValueError(f"check_rule: name should be one of {', '.join(map(repr, RULES))}, but is {rule!r}")
    if module is not None and str(module).endswith(".py"):
        path = Path(module).resolve()
        if not path.is_file():
            raise ValueError(f"check_rule: module should be the path of a file, but there is no {str(module)!r}")
        return Source(path.stem, str(path))
    name = str(module or getattr(RULES[rule].update, "__module__", None) or "__main__")
    if name == "__main__":
        raise ValueError(
            f"check_rule: module should say where the workers find the rule {rule!r}, as the script that runs cannot "
            "be imported: give module= the name or the path of a file that registers the rule when it is imported "
            "(module=__file__ will do for a script that keeps what it runs under if __name__ == '__main__')"
        )
    if name.startswith("orthon."):
        return None
    return Source(name, getattr(sys.modules.get(name), "__file__", None) or "")


def load(rule: str, source: Source | None) -> None:
    """Import the source of a rule, unless the rule is registered already.

    Raises:
        ValueError: if it does not register the rule.
    """
    if rule in RULES:
        return
    assert source is not None, f"{rule} is not registered"
    try:
        import_module(source.name)
    except ModuleNotFoundError as error:
        if not source.path or error.name != source.name:
            raise
        spec = util.spec_from_file_location(source.name, source.path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[source.name] = module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if rule not in RULES:
        raise ValueError(
            f"check_rule: module should be one that registers the rule {rule!r} when it is imported, but "
            f"{source.name!r} does not"
        )
