"""What an optimizer does with each parameter, and what its step sends and takes."""

from orthon.explain.explaining import explain
from orthon.explain.explanation import Explanation
from orthon.explain.rows import BatchRow, Row, WaveRow
from orthon.explain.shares import Share

__all__ = ["BatchRow", "Explanation", "Row", "Share", "WaveRow", "explain"]
