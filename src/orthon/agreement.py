"""What ranks that update parameters together must agree on, found out by one small collective in a step."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orthon.linalg import factor_dtype
from orthon.member import Member
from orthon.sharding import Ranks, local, process_group

# How much the norms of replicas' gradients may differ: they are sums of the same numbers, in another order at worst.
_SAME = 1e-3

T = TypeVar("T")


class Agreement:
    """Ranks that update parameters together, and what they must agree on in every step.

    Args:
        members: all parameters, as this rank knows them at its first step with them.
        owner: the optimizer, for errors.
    """

    def __init__(self, members: Sequence[Member], owner: str) -> None:
        self.owner = owner
        everyones = {member.layout.everyone.ranks: member.layout.everyone for member in members}
        sets = {frozenset(ranks): whole for ranks, whole in everyones.items() if whole.size > 1}
        # A set that is part of another agrees with it.
        self.sets: list[Ranks] = [ranks for key, ranks in sets.items() if not any(key < other for other in sets)]
        self._facts = ["\n".join(f"{m.name} {m.facts()}" for m in _of(members, ranks)) for ranks in self.sets]

    def spread(self, members: Sequence[Member], names: Sequence[str]) -> list[str]:
        """Return the names that any rank gives, after making sure that the ranks agree.

        News travels from one set of ranks to the next, so that all that are connected by some parameter hear it.

        Raises:
            ValueError: on all ranks of a set that does not agree on its parameters, options and which gradients
                there are.
        """
        found = set(names)
        for ranks, facts in zip(self.sets, self._facts, strict=True):
            presence = "".join("01"[member.grad is not None] for member in _of(members, ranks))
            digest = hashlib.blake2b(f"{facts}\n{presence}".encode(), digest_size=7).digest()
            mine = int.from_bytes(digest, "little")
            numbers = torch.tensor([len(found), mine, -mine], device=local(members[0].param).device)
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=process_group(ranks.ranks))
            news, top, bottom = numbers.tolist()
            if top != -bottom:
                raise ValueError(f"{self.owner}: {_disagreement(members, ranks)}")
            if news:
                found.update(*_collect(sorted(found), ranks))
        return sorted(found)

    def all(self, condition: Tensor) -> Tensor:
        """Return whether a condition, a boolean on the device, holds on all ranks, without waiting for the device."""
        for ranks in self.sets:
            flag = condition.to(torch.int32)
            dist.all_reduce(flag, dist.ReduceOp.MIN, group=process_group(ranks.ranks))
            condition = flag > 0
        return condition

    def check_replicas(self, members: Sequence[Member]) -> None:
        """Make sure that gradients are alike where they should be, and that the ranks agree.

        Raises:
            ValueError: on all ranks.
        """
        copies: dict[tuple[int, ...], list[Member]] = {}
        for member in members:
            ranks = member.layout.alike(averages=member.averages)
            for same in [ranks] if member.layout.everyone.size > 1 else self.sets:
                copies.setdefault(same.ranks, []).append(member)
        unequal = self.spread(members, _unequal(copies))
        if unequal:
            raise ValueError(
                f"{self.owner}: parameter {unequal[0]!r}: its gradients differ between ranks that have copies of it; "
                "let DistributedDataParallel or fully_shard average them, or give the optimizer replicas=... and "
                "sync_gradients=True; if it is another parameter on each rank, give it to an optimizer of its own"
            )


def _unequal(copies: Mapping[tuple[int, ...], Sequence[Member]]) -> list[str]:
    """Return the names of parameters whose gradients differ over the ranks that have copies of them."""
    unequal = []
    for ranks, members in copies.items():
        if len(ranks) == 1:
            continue
        device = local(members[0].param).device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        norms = torch.stack([zero if m.grad is None else _norm(m.grad).to(device) for m in members])
        norms = torch.where(norms.isfinite(), norms, 0)
        both = torch.stack([norms, -norms])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=process_group(ranks))
        different = both[0] + both[1] > _SAME * both[0]
        unequal += [members[i].name for i in different.nonzero().flatten().tolist()]
    return unequal


def _norm(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=factor_dtype(grad.dtype))
    return norm.double()


def _of(members: Sequence[Member], ranks: Ranks) -> list[Member]:
    return [member for member in members if set(member.layout.everyone.ranks) <= set(ranks.ranks)]


def _collect(mine: list[T], ranks: Ranks) -> list[list[T]]:
    """Return what each of the ranks gives, in ascending order of ranks."""
    everyones = [mine for _ in ranks.ranks]
    dist.all_gather_object(everyones, mine, group=process_group(ranks.ranks))
    return everyones


def _disagreement(members: Sequence[Member], ranks: Ranks) -> str:
    """Return which parameter the ranks do not agree on, and how."""
    mine = [(m.name, m.facts() | {"gradient": "none" if m.grad is None else "present"}) for m in _of(members, ranks)]
    (first_rank, first), *others = zip(sorted(ranks.ranks), _collect(mine, ranks), strict=True)
    for rank, other in others:
        for (name, facts), (other_name, other_facts) in zip(first, other, strict=False):
            if name != other_name:
                return (
                    f"parameter {name!r}: rank {rank} has {other_name!r} in its place; all ranks should give the "
                    "optimizer the same parameters in the same order"
                )
            for key in facts | other_facts:
                if facts.get(key) != other_facts.get(key):
                    return (
                        f"parameter {name!r}: {key} should be the same on all ranks, but is {facts.get(key)} on rank "
                        f"{first_rank} and {other_facts.get(key)} on rank {rank}"
                    )
        if len(first) != len(other):
            name = max(first, other, key=len)[min(len(first), len(other))][0]
            return (
                f"parameter {name!r}: is not on all ranks; rank {first_rank} gives the optimizer {len(first)} "
                f"parameters, and rank {rank} {len(other)}"
            )
    raise AssertionError("the ranks agree")
