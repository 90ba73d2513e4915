import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthon.train.errors import UserError
from orthon.train.text.tokens import Piece
from orthon.train.text.windows import BatchOrder, Windows


def pieces(*lengths: int) -> list[Piece]:
    """Consecutive numbers, so that a token says where it stood."""
    starts = np.cumsum([0, *lengths])
    return [
        Piece(f"piece {i}", np.arange(a, a + n, dtype=np.uint16))
        for i, (a, n) in enumerate(zip(starts, lengths, strict=False))
    ]


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5), context=st.integers(1, 20))
def test_windows_do_not_overlap_and_stay_in_their_piece(lengths: list[int], context: int) -> None:
    text = pieces(*lengths)
    expected = sum((n - 1) // context for n in lengths if n)
    if not expected:
        with pytest.raises(UserError, match="shorter than one sequence"):
            Windows(text, context, 1000, "training")
        return
    windows = Windows(text, context, 1000, "training")
    assert len(windows) == expected
    rows = windows.read(np.arange(len(windows)))
    assert rows.shape == (expected, context + 1)
    inputs = rows[:, :-1].flatten().tolist()
    assert len(set(inputs)) == len(inputs)
    assert (rows.diff() == 1).all()  # consecutive tokens
    ends, rows = np.cumsum(lengths), rows.numpy()
    assert (np.searchsorted(ends, rows[:, 0], "right") == np.searchsorted(ends, rows[:, -1], "right")).all()


@given(windows=st.integers(1, 50), batch_size=st.integers(1, 20), seed=st.integers(0, 2**63))
def test_an_epoch_is_a_permutation(windows: int, batch_size: int, seed: int) -> None:
    order = BatchOrder(windows, batch_size, seed)
    seen = np.concatenate([order.indices(step) for step in range(2 * windows // batch_size + 1)])
    for epoch in range(2):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


@given(batch_size=st.integers(1, 20), world=st.integers(1, 8), step=st.integers(0, 100))
def test_ranks_partition_the_batch(batch_size: int, world: int, step: int) -> None:
    order = BatchOrder(37, batch_size, seed=1)
    parts = [order.indices(step, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), order.indices(step))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_depends_on_seed_and_step_alone() -> None:
    forward = [BatchOrder(20, 6, seed=3).indices(step).tolist() for step in range(10)]
    order = BatchOrder(20, 6, seed=3)
    assert [order.indices(step).tolist() for step in reversed(range(10))] == forward[::-1]
    assert BatchOrder(20, 6, seed=4).indices(0).tolist() != forward[0]
    flat = [window for batch in forward for window in batch]
    assert flat[:20] != flat[20:40]  # epochs differ


@given(count=st.integers(1, 100), number=st.integers(1, 100))
def test_spread(count: int, number: int) -> None:
    chosen = Windows(pieces(count + 1), 1, 1000, "held-out").spread(number)
    assert len(chosen) == len(set(chosen)) == min(count, number)
    assert chosen[0] == 0
    assert chosen[-1] == (count - 1 if number > 1 else 0)


def test_a_token_beyond_the_vocabulary() -> None:
    windows = Windows(pieces(10), 3, 8, "training")
    assert windows.read(np.array([0])).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(UserError, match=r"piece 0 holds token 9, but the vocabulary has 8 tokens"):
        windows.read(np.array([2]))
