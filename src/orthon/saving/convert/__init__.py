"""Optimizer states of other packages, converted to what orthon's optimizers load."""

from orthon.saving.convert.conversion import SOURCES, Conversion, ConvertedGroup, convert_state, convert_states

__all__ = ["SOURCES", "Conversion", "ConvertedGroup", "convert_state", "convert_states"]
