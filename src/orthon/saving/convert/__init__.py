"""Optimizer states of other packages, as orthon's optimizers load them."""

from orthon.saving.convert.conversion import SOURCES, Conversion, ConvertedGroup, convert_state, convert_states

__all__ = ["SOURCES", "Conversion", "ConvertedGroup", "convert_state", "convert_states"]
