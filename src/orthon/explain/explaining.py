"""The function `explain`: what an optimizer does with each parameter, and what its step sends and takes."""

import torch

from orthon.explain.explained_step import ExplainedStep
from orthon.explain.explanation import Explanation
from orthon.explain.rows import Row
from orthon.explain.shares import Shares
from orthon.explain.unknown import unknown_replicas
from orthon.machines import Machine, named_machine
from orthon.optimizers.wrapped import own_optimizer


@torch.no_grad()
def explain(optimizer: torch.optim.Optimizer, *, machine: Machine | str | None = None) -> Explanation:
    """Return what an optimizer does with each parameter, and why; `print` shows it as a table.

    It also tells how much memory a step takes, what many processes communicate, and how long they work and send, on
    this rank and on the busiest ones. Nothing is computed or sent, with one exception: with `replicas` that no mesh of
    the parameters knows, all of these processes must call it together.

    Args:
        optimizer: one of Orthon's, also inside those of Accelerate and Lightning. Parameters without gradients are
            taken to have some.
        machine: on which the step is taken to run, for plans where that machine is not: a name of
            `orthon.machines.MACHINES` or a `Machine`. Dtypes, arithmetic and routes are those of a step there. So
            parameters on a CPU, or without storage on a mesh of CPUs, speak for as many GPUs. None for where they are.

    Raises:
        TypeError: for an optimizer that is not one of Orthon's, or a machine that is none.
        ValueError: for a machine that is not known.
    """
    optimizer = own_optimizer(optimizer, "explain")
    named = named_machine(machine, "explain")
    members = optimizer.members()
    if not members:
        return Explanation(())
    planned_for = named or optimizer.machine_of(members[0])
    device = None if named is None else torch.device(named.device)
    here = ExplainedStep(optimizer, planned_for, device)
    parameters = tuple(Row.of(member, here.states[member.param]) for member in here.members)
    waves, temporary_bytes = here.rows()
    me = int(members[0].layout.grid.ranks[members[0].layout.grid.coordinate])
    shares = Shares(here.batches, planned_for)
    found = {me: shares.of(me, here.messages)}
    most_work, most_bytes = shares.busiest(me)
    for rank in {most_work, *most_bytes} - {me}:
        there = ExplainedStep(optimizer, planned_for, device, rank=rank)
        found[rank] = Shares(there.batches, planned_for).of(rank, there.messages)
    return Explanation(
        rows=parameters,
        waves=tuple(waves),
        temporary_bytes=temporary_bytes,
        machine=planned_for.name,
        here=found[me],
        most_work=found[most_work],
        most_bytes=max(found.values(), key=lambda share: share.sent + share.received),  # of equals this rank
        note=unknown_replicas(members, known=optimizer._replicas is not None),
    )
