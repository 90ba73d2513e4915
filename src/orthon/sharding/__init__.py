"""Who holds which part of a parameter, and what they communicate."""

from orthon.sharding.cost import flops_per_number, worth_sending
from orthon.sharding.dtensor import is_dtensor
from orthon.sharding.layout import Extent, Layout, check_placements, local, on_meta, relocated, takes_part
from orthon.sharding.layouts import Layouts, placed_like
from orthon.sharding.matrices import Matrices, Stack
from orthon.sharding.owners import Owners, Share, deal
from orthon.sharding.ranks import Message, Ranks, record_messages
from orthon.sharding.side import Side
from orthon.sharding.step import Step, run

__all__ = [
    "Extent",
    "Layout",
    "Layouts",
    "Matrices",
    "Message",
    "Owners",
    "Ranks",
    "Share",
    "Side",
    "Stack",
    "Step",
    "check_placements",
    "deal",
    "flops_per_number",
    "is_dtensor",
    "local",
    "on_meta",
    "placed_like",
    "record_messages",
    "relocated",
    "run",
    "takes_part",
    "worth_sending",
]
