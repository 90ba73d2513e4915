"""Who holds which part of a parameter, and what they communicate."""

from orthon.sharding.cost import worth_sending
from orthon.sharding.layout import Layout, check_placements, local, on_meta, relocated, takes_part
from orthon.sharding.layouts import Layouts, placed_like
from orthon.sharding.ranks import Message, Ranks, record_messages
from orthon.sharding.side import Side
from orthon.sharding.step import Step, run

__all__ = [
    "Layout",
    "Layouts",
    "Message",
    "Ranks",
    "Side",
    "Step",
    "check_placements",
    "local",
    "on_meta",
    "placed_like",
    "record_messages",
    "relocated",
    "run",
    "takes_part",
    "worth_sending",
]
