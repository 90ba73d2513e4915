"""What ranks that update parameters together must agree on, found out by one small collective in a step."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from orthon.linalg import factor_dtype
from orthon.sharding import Ranks, local
from orthon.step.member import Member

# How much the norms of replicas' gradients may differ: they are sums of the same numbers, in another order at worst.
_SAME = 1e-3
_NOISE = 1e-6  # relative to the largest of them


class Agreement:
    """Sets of ranks that update parameters together, and what each set must agree on in every step.

    `is_alone` tells whether no other rank updates any of the parameters.

    Args:
        members: all parameters, as this rank knows them at its first step with them.
        owner: the optimizer, for errors.
        beside: the ranks that hold shards of frozen parameters beside these, and their device, if they are known.
    """

    def __init__(self, members: Sequence[Member], owner: str, beside: tuple[Ranks, torch.device] | None = None) -> None:
        self.owner = owner
        places: dict[tuple[int, ...], list[int]] = {}
        for place, member in enumerate(members):
            places.setdefault(member.layout.everyone.ranks, []).append(place)
        # Smaller sets come first: what is found in one reaches the larger one that it is a part of.
        self._sets = [
            _Set(members[own[0]].layout.everyone, own, [members[place] for place in own])
            for own in sorted(places.values(), key=lambda own: members[own[0]].layout.everyone.size)
            if members[own[0]].layout.everyone.size > 1
        ]
        self.is_alone = not self._sets
        # The ranks on which plain parameters are copies, as others beside them are sharded.
        self._together = (self._sets[-1].ranks, self._sets[-1].device) if self._sets else beside

    def spread(self, members: Sequence[Member], names: Sequence[str]) -> list[str]:
        """Return the names that any of the ranks gives, after making sure that they agree.

        Raises:
            ValueError: on all ranks, where a set does not agree on its parameters, options or gradients.
        """
        found, problem = set(names), ""
        for each in self._sets:
            problem, _ = each.exchange(members, found, problem, violated=False)
        if problem:
            raise ValueError(f"{self.owner}: {problem}")
        return sorted(found)

    def all(self, members: Sequence[Member], condition: Tensor) -> Tensor:
        """Return whether a condition, a boolean on a device, holds on all ranks, without waiting for an accelerator.

        Raises:
            ValueError: on all ranks, where a set whose parameters lie on CPUs does not agree on what `spread` names.
        """
        problem = ""
        for each in self._sets:
            if each.device.type == "cpu":
                problem, violated = each.exchange(members, set(), problem, violated=not condition)
                condition = torch.tensor(not violated, device="cpu")
            else:
                condition = each.ranks.largest((~condition).to(each.device, torch.int32)) == 0
        if problem:
            raise ValueError(f"{self.owner}: {problem}")
        return condition

    def check_copies(self, members: Sequence[Member]) -> None:
        """Make sure that gradients are alike where parameters are copies. The ranks should agree otherwise.

        Raises:
            ValueError: on all ranks.
        """
        copies: dict[tuple[int, ...], tuple[Ranks, list[Member]]] = {}
        for member in members:
            ranks = member.layout.copies(unsynced=member.averages)
            copies.setdefault(ranks.ranks, (ranks, []))[1].append(member)
        names = [name for ranks, alike in copies.values() if ranks.size > 1 for name in _unequal(alike, ranks)]
        if self._together is not None:
            # Plain tensors among sharded ones, if they are the same parameters on all ranks.
            plain = [member for member in members if member.layout.everyone.size == 1]
            (ranks, device), digest = self._together, _digest(_facts(plain), plain)
            top, bottom = ranks.largest(torch.tensor([digest, -digest], device=device)).tolist()
            if plain and top == -bottom:
                names += _unequal(plain, ranks)
        unequal = self.spread(members, names)
        if unequal:
            raise ValueError(
                f"{self.owner}: parameter {unequal[0]!r}: its gradients differ between ranks that have copies of it; "
                "let DistributedDataParallel or fully_shard average them, or give the optimizer replicas=... and "
                "sync_gradients=True; if it is another parameter on each rank, give it to an optimizer of its own"
            )


class _Set:
    """Ranks that update some parameters together.

    Args:
        ranks: these ranks.
        places: of the parameters among all.
        members: the parameters.
    """

    def __init__(self, ranks: Ranks, places: list[int], members: list[Member]) -> None:
        self.ranks, self.places = ranks, places
        self.device = local(members[0].param).device
        self._facts = _facts(members)
        one_of_each_group = {id(member.group): place for place, member in zip(places, members, strict=True)}
        self._groups = list(one_of_each_group.values())

    def digest(self, members: Sequence[Member]) -> int:
        """Return a number that ranks with other facts, learning rates or gradients do not have."""
        rates = [members[place].group["lr"] for place in self._groups]
        now = str([lr for lr in rates if not isinstance(lr, Tensor)])  # a tensor may have to be waited for
        return _digest(self._facts + now.encode(), [members[place] for place in self.places])

    def exchange(self, members: Sequence[Member], found: set[str], problem: str, *, violated: bool) -> tuple[str, bool]:
        """Tell the other ranks the news of this one, add theirs to `found`, and return a problem of any, if there is.

        Args:
            members: all parameters.
            found: names to be told.
            problem: what ranks do not agree on, if something is known.
            violated: whether a condition does not hold here; it is returned whether it does not on any rank.
        """
        digest = self.digest(members)
        numbers = torch.tensor([len(found) + bool(problem), digest, -digest, violated], device=self.device)
        news, top, bottom, anywhere = self.ranks.largest(numbers).tolist()
        if top != -bottom:
            problem = problem or _disagreement([members[place] for place in self.places], self.ranks)
        if news:
            for _, (other_names, other_problem) in self.ranks.collect((sorted(found), problem)):
                found.update(other_names)
                problem = problem or other_problem
        return problem, bool(anywhere)


def _facts(members: Sequence[Member]) -> bytes:
    """Return a hash of what must be the same on all ranks in every step."""
    text = "\n".join(f"{member.name} {member.facts()}" for member in members)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _digest(facts: bytes, members: Sequence[Member]) -> int:
    gradients = ",".join("" if member.grad is None else str(member.grad.dtype) for member in members)
    return int.from_bytes(hashlib.blake2b(facts + gradients.encode(), digest_size=7).digest(), "little")


def _unequal(members: Sequence[Member], ranks: Ranks) -> list[str]:
    """Return the names of parameters whose gradients differ over the ranks, which have copies of them."""
    device = local(members[0].param).device
    zero = torch.zeros((), dtype=torch.float64, device=device)
    norms = torch.stack([zero if m.grad is None else _norm(m.grad).to(device) for m in members])
    known = norms.isfinite()
    norms = torch.where(known, norms, 0)
    largest, smallest, unknown = ranks.largest(torch.stack([norms, -norms, (~known).double()]))
    # A gradient that is zero but for rounding, such as that of a key's bias, may be anything beside the others.
    different = (largest + smallest > _SAME * largest + _NOISE * largest.max()) & (unknown == 0)
    return [members[i].name for i in different.nonzero().flatten().tolist()]


def _norm(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=factor_dtype(grad.dtype))
    return norm.double()


def _disagreement(members: Sequence[Member], ranks: Ranks) -> str:
    """Return which parameter the ranks do not agree on, and how."""
    mine = [(m.name, m.facts() | {"gradient": "none" if m.grad is None else str(m.grad.dtype)}) for m in members]
    (first_rank, first), *others = ranks.collect(mine)
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
