"""Tables of cases of which a part runs by default, and all with `make test-all`."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def crossed(rows: Iterable[Any], *columns: Iterable[Any], every: int) -> list[Any]:
    """Return all combinations of rows and columns, all but some of them marked long.

    Those that are not long are spread evenly: about one in `every` combinations of each row, and others for the next
    row. So each row is among them if there are at least `every` combinations of columns, and each of these combinations
    if there are at least `every` rows.

    Args:
        rows: what is tested, such as rules. A tuple stands for several arguments.
        columns: in which cases.
        every: how much fewer are not long.
    """
    cases = []
    for i, row in enumerate(rows):
        for j, column in enumerate(product(*columns)):
            values = (*row, *column) if isinstance(row, tuple) else (row, *column)
            cases.append(pytest.param(*values, marks=() if (i + j) % every == 0 else pytest.mark.long))
    return cases
