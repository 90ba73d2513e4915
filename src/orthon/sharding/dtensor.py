"""DTensors, without an import of torch.distributed.tensor by Orthon.

That import takes longer than the rest of Orthon, as it brings SymPy along. Whoever makes a DTensor has imported it, so
that there are none as long as it is not there.
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
