"""What an optimizer does beside its steps: make the state of replicas equal, and warn where there is no work."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from orthon.linalg import factor_dtype
from orthon.sharding import Step, local, run
from orthon.step.member import Member
from orthon.step.words import warn


def make_equal(
    members: Sequence[Member], states: Mapping[Tensor, Mapping[str, Tensor]], different: set[Tensor]
) -> None:
    """Average over the replicas the state that compressed synchronization leaves different.

    Args:
        members: parameters, on all ranks in the same order.
        states: of the parameters; changed in place.
        different: the parameters whose state differs. These members are taken out of it.
    """
    for member in members:
        if member.param in different and states.get(member.param):
            for key in member.own_state:
                own = local(states[member.param][key])
                mean = own.to(factor_dtype(own.dtype)) / member.layout.replicas.size
                run([[_into(own, member.layout.replicas.sum(mean))]], at_once=1)
        different.discard(member.param)


def warn_of_no_gradients(owner: str) -> None:
    """Warn that a step has nothing to do, with the usual cause."""
    warn(
        f"{owner}: no parameter has a gradient, so step() changes nothing; if parameters have been replaced or frozen "
        "since the optimizer was made, as fully_shard and PEFT do, make it after that"
    )


def _into(target: Tensor, step: Step[Tensor]) -> Step[None]:
    target.copy_((yield from step))
