"""States of optimizers: loaded, read from checkpoints, and converted from those of other packages.

`SafeReader` and `LoadPlanner` are for torch.distributed.checkpoint, which takes long to import. So it is imported when
one of them is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthon.saving.checkpoint import LoadPlanner, SafeReader

__all__ = ["LoadPlanner", "SafeReader"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("orthon.saving.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
