"""Rules of the table beside their references."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from orthon.testing.factors import NOISE, Exact
from orthon.testing.formulas import Both, run_both
from orthon.testing.references import REFERENCES
from tests.rules_table import EXACT, POLAR_RULES


def run(
    rule: str,
    gradients: list[Tensor],
    options: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    *,
    nonfinite: str = "raise",
) -> Both:
    """Run a rule for matrices and its reference, with exact polar factors, on the same gradients."""
    reference = partial(REFERENCES[rule], factors=Exact(NOISE[dtype]))  # type: ignore[call-arg]
    options = {**(EXACT if rule in POLAR_RULES else {}), **options}
    return run_both(rule, reference, gradients, options, dtype=dtype, nonfinite=nonfinite)
