"""For authors of update rules: hold a rule to one process on every layout, and to its formulas.

    from orthon.testing import check_rule, references

    print(check_rule("dion", reference=references.dion))

It needs torch alone, and starts the processes that it needs itself. A rule of your own is checked in the same way, once
it is registered; `references` shows how a reference looks.
"""

from orthon.testing import references
from orthon.testing.check import Report, check_rule
from orthon.testing.factors import Exact
from orthon.testing.failures import RankError
from orthon.testing.pool import Pool

__all__ = ["Exact", "Pool", "RankError", "Report", "check_rule", "references"]
