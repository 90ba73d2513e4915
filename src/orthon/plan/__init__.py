"""What a step of an optimizer costs on a machine that need not be here."""

from orthon.plan.planning import plan
from orthon.plan.rows import Plan, PlanRow

__all__ = ["Plan", "PlanRow", "plan"]
