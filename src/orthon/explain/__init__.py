"""What an optimizer does with each parameter, and what its step sends and takes."""

from orthon.explain.dry_run import explain
from orthon.explain.explanation import Explanation
from orthon.explain.rows import BatchRow, Row

__all__ = ["BatchRow", "Explanation", "Row", "explain"]
