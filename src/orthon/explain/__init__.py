"""What an optimizer does with each parameter, and what its step sends and takes."""

from orthon.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
