"""For authors of update rules: hold a rule to one process on every layout, and to its formulas.

    from orthon.testing import check_rule

    print(check_rule("dion", reference=orthon.testing.references.dion))

It needs torch alone, and starts the processes that it needs itself.
"""

from orthon.testing import references
from orthon.testing.check import Report, check_rule
from orthon.testing.factors import Exact
from orthon.testing.failures import RankError
from orthon.testing.pool import Pool

__all__ = ["Exact", "Pool", "RankError", "Report", "check_rule", "references"]
