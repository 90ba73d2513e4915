"""The state of parameters before their first step, made from what their rule declares."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from orthon.algorithms.state import Counter, Entries, Entry
from orthon.linalg import random_normal
from orthon.sharding import Layout, Matrices, Stack, local


def matrix_name(name: str, matrices: Matrices, number: int) -> str:
    """Return what one matrix of a parameter is called; one alone has the parameter's name."""
    return name if matrices.reading.count == 1 else f"{name}[{number}]"


def factor_key(
    key: str, entry: Entry, matrices: Matrices, stack: Stack, of_stacks: Iterable[Entries]
) -> tuple[str, int | None]:
    """Return where a state keeps what lies along one side of a stack: its key, and the block if it has one of its own.

    Blocks of unequal size have no tensor in common if they cut the other side, or if its widths differ between them.

    Args:
        key: of the entry.
        entry: of the stack.
        matrices: of the parameter.
        stack: one of theirs.
        of_stacks: what the rule keeps of each of the stacks.
    """
    if not matrices.divides or matrices.has_equal_blocks:
        return key, None
    if matrices.reading.blocked == entry.side:
        along = [
            other for entries in of_stacks if isinstance(other := entries[key], Entry) and other.side == entry.side
        ]
        if len({other.width for other in along}) == 1:
            return key, None
    return f"{key}.{stack.block}", stack.block


def new_plain_state(entries: Entries, param: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the state of a parameter before the first step, for a rule that takes no matrices."""
    state = {}
    for key, entry in entries.items():
        if isinstance(entry, Counter):
            device = param.device if entry.on_device else "cpu"
            state[key] = torch.zeros((), dtype=torch.float32, device=device)
        else:
            assert entry.side is None
            state[key] = layout.zeros_like(param, entry.dtype)
    return state


def new_matrix_state(
    entries: Mapping[Stack, Entries],
    name: str,
    seed: int,
    param: Tensor,
    matrices: Matrices,
    given: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the state of a parameter before the first step, for a rule that takes matrices.

    Args:
        entries: for each stack of the matrices what the rule keeps.
        name: of the parameter.
        seed: of random numbers. They are a function of it, the matrix's name, the row and the column.
        param: the parameter.
        matrices: how it is read.
        given: what there is of it already.
    """
    state = dict(given)
    for stack, of_stack in entries.items():
        state.update(
            new_plain_state(
                {k: e for k, e in of_stack.items() if _is_whole(e) and k not in state}, param, matrices.layout
            )
        )
        for key, entry in of_stack.items():
            if isinstance(entry, Counter) or entry.side is None:
                continue
            place, block = factor_key(key, entry, matrices, stack, entries.values())
            if place not in state:
                like = local(param.detach()).new_empty(0, dtype=entry.dtype)
                state[place] = matrices.factor(entry.side, entry.width, block, like)
            if entry.std and not param.is_meta:
                _fill(local(state[place]), entry, stack, f"{seed}/{name}", matrices)
    return state


def _is_whole(entry: Entry | Counter) -> bool:
    return isinstance(entry, Counter) or entry.side is None


def _fill(part: Tensor, entry: Entry, stack: Stack, name: str, matrices: Matrices) -> None:
    assert entry.side is not None
    rows = torch.arange(*matrices.indices(entry.side, entry.width, stack), device=part.device)
    cols = torch.arange(entry.width, device=part.device)
    for_each = [
        random_normal(matrix_name(name, matrices, number), rows, cols, dtype=torch.float32).mul_(entry.std)
        for number in stack.numbers
    ]
    if for_each:
        matrices.close_factor(part, entry.side, stack, torch.stack(for_each).to(part.dtype))
