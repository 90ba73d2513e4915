"""What the parameters of a model are, and which algorithm updates each of them."""

from orthon.model.qk_clip import qk_clip_
from orthon.model.routing import param_groups

__all__ = ["param_groups", "qk_clip_"]
