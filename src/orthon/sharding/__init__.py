"""Who holds which shard of a parameter, and what the ranks communicate."""

from orthon.sharding.cuts import check_placements
from orthon.sharding.deal import Job, deal
from orthon.sharding.dtensor import is_dtensor, local, on_meta, relocated, takes_part
from orthon.sharding.layout import Layout
from orthon.sharding.layouts import Layouts, placed_like
from orthon.sharding.matrices import Matrices, Stack
from orthon.sharding.messages import Message, record_messages
from orthon.sharding.owners import Owners, Shards
from orthon.sharding.ranks import Ranks
from orthon.sharding.side import Side
from orthon.sharding.spans import Extent, Span
from orthon.sharding.step import Step, UnderWay, run, together

__all__ = [
    "Extent",
    "Job",
    "Layout",
    "Layouts",
    "Matrices",
    "Message",
    "Owners",
    "Ranks",
    "Shards",
    "Side",
    "Span",
    "Stack",
    "Step",
    "UnderWay",
    "check_placements",
    "deal",
    "is_dtensor",
    "local",
    "on_meta",
    "placed_like",
    "record_messages",
    "relocated",
    "run",
    "takes_part",
    "together",
]
