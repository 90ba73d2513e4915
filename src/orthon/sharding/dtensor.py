"""DTensors, without the import of torch.distributed.tensor where there are none.

That import takes longer than all of Orthon, as it brings SymPy along. Only programs that have DTensors need it, and
these have imported it already.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_dtensor(x: object) -> "TypeIs[DTensor]":
    """Return whether `x` is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, getattr(module, "DTensor", ()))
