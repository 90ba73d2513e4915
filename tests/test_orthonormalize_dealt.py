"""Orthonormalization over several ranks that deal the small work out, in lock step in one process."""

from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from orthon.linalg import Columns, orthonormalize, orthonormalize_on_shards, unit_columns
from orthon.linalg.columns import unit_columns_on_shards
from orthon.linalg.dropping import cholesky_dropping_
from orthon.linalg.gram import pack_upper, packed_size, unpack_upper
from orthon.linalg.orthonormalize_dealt import _to_one_scale
from orthon.linalg.triangles import inverted, inverted_by_halves
from tests.support.hard_matrices import MATRICES, randn
from tests.support.lockstep import LockstepRank, in_lockstep
from tests.test_orthonormalize_precision import BOUND, BOUND_NEAR_NOISE, NEAR_NOISE, tf32  # noqa: F401

F32, F64 = torch.float32, torch.float64
SPREADS: dict[str, tuple[float, ...]] = {  # parts of the rows of each rank
    "two even": (0.5, 0.5),
    "some without rows": (0.0, 0.7, 0.0, 0.3),
    "all on one": (0.0, 0.0, 1.0),
    "five": (0.1, 0.3, 0.2, 0.25, 0.15),
}


def cut(B: Tensor, spread: tuple[float, ...]) -> list[Tensor]:
    """Return the rows of each rank, from B (b, m, r)."""
    ends = [round(end * B.shape[1]) for end in accumulate(spread, initial=0)]
    return [B[:, a:b].clone() for a, b in pairwise(ends)]


def on_ranks(
    make: Any, B: Tensor, spread: tuple[float, ...], **options: Any
) -> tuple[Columns, list[tuple[str, list[int]]]]:
    """Return what the ranks have together, and the collectives."""
    parts = cut(B, spread)
    results, notes = in_lockstep(lambda ranks, i: make(parts[i], ranks, **options), len(spread))
    first = results[0]
    for result in results:  # bit for bit, so that all go the same way
        assert torch.equal(result.live, first.live)
        assert torch.allclose(result.size, first.size, rtol=0, atol=0, equal_nan=True)
    return Columns(torch.cat([result.vectors for result in results], 1), first.live, first.size), notes


def check_equal(found: Columns, expected: Columns, tolerance: float, case: str) -> None:
    assert torch.equal(found.live, expected.live), f"{case}: {found.live.sum()}, not {expected.live.sum()} columns live"
    error = (found.vectors - expected.vectors).abs().max()
    assert error <= tolerance, f"{case}: off by {error:.1e}"
    if expected.live.all():  # otherwise what is left of a column beside noise before it depends on the noise
        error = (found.size / expected.size - 1).abs().max()
        assert error <= 1e5 * tolerance, f"{case}: sizes are off by {error:.1e}"


def wide(m: int, r: int) -> Tensor:
    """Return columns of very different lengths."""
    return randn(m, r) * 10.0 ** (torch.arange(r) % 3 * 30 - 30).double()


CASES = {**MATRICES, "1e-30, 1 and 1e30": wide}
# A change of B by an epsilon moves P by the condition number times as much.
TOLERANCE = {
    "condition 1e+05": 1e-9,
    "condition 1e+07": 1e-8,
    "condition 1e+10": 1e-5,
    "one huge singular value": 1e-7,
    "nearly parallel": 1e-9,
    "Hilbert": 0.1,
    "Vandermonde": 0.1,
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", CASES)
def test_ranks_compute_what_one_process_does(name: str, spread: str) -> None:
    for shape, count, turn in [((256, 64), 1, 1), ((48, 48), 7, 0), ((90, 33), 2, 3), ((300, 1), 3, 7), ((1, 1), 2, 0)]:
        B = torch.stack([MATRICES["random"](*shape), *[CASES[name](*shape) * 2.0**-i for i in range(count)]][-count:])
        found, notes = on_ranks(orthonormalize_on_shards, B, SPREADS[spread], turn=turn)
        check_equal(found, orthonormalize(B.clone()), TOLERANCE.get(name, 1e-10), f"{shape}")
        live = torch.diag_embed(found.live.double())
        assert (found.vectors.mT @ found.vectors - live).abs().max() <= 4e-14
        assert [kind for kind, _ in notes] in (["reduce", "gather"] * 2, ["reduce", "gather"] * 3)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("precision", ["tf32", "bf16x3"])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.usefixtures("tf32")
def test_other_arithmetic(name: str, precision: str, spread: str) -> None:
    for shape in ((256, 64), (48, 48), (300, 130)):
        B = torch.stack([MATRICES[name](*shape), MATRICES["random"](*shape)]).float()
        expected = orthonormalize(B.clone(), precision=precision)
        found, notes = on_ranks(orthonormalize_on_shards, B, SPREADS[spread], precision=precision)
        case, P = f"{precision}, {shape}", found.vectors.double()
        error = (P.mT @ P - torch.diag_embed(found.live.double())).abs().max()
        assert error <= (BOUND_NEAR_NOISE if name in NEAR_NOISE else BOUND)[precision], f"{case}: off by {error:.1e}"
        if name not in NEAR_NOISE:  # both differ from P in float64, by the same errors
            right = orthonormalize(B.double())
            error = (expected.vectors - right.vectors).abs().max() if torch.equal(expected.live, right.live) else 0.3
            check_equal(found, expected, 4 * float(error) + 1e-6, case)
        assert len(notes) == 6


def test_a_batch_ends_early_only_as_a_whole() -> None:
    easy, hard = randn(60, 9), MATRICES["half the rank"](60, 9)
    for matrices, collectives in [([easy] * 3, 4), ([easy, hard, easy], 6), ([hard], 6)]:
        B = torch.stack(matrices)
        found, notes = on_ranks(orthonormalize_on_shards, B, (0.3, 0.3, 0.4))
        check_equal(found, orthonormalize(B.clone()), 1e-12, f"{len(matrices)} matrices")
        assert len(notes) == collectives


def test_numbers_of_the_collectives() -> None:
    b, r = 5, 9
    easy = torch.stack([randn(60, r)] * b)
    hard = easy.clone()
    hard[1, :, 4] = hard[1, :, 3]
    t = packed_size(r)
    for B, passes in [(easy, 2), (hard, 3)]:
        _, notes = on_ranks(orthonormalize_on_shards, B, (0.5, 0.5), turn=1)
        per_matrix = [(t + r, t + 2 * r), (t, t + 2 * r + 1), (t, t + r)][:passes]
        expected = []
        for reduced, gathered in per_matrix:
            expected += [("reduce", [b * reduced] * 2), ("gather", [2 * gathered, 3 * gathered])]
        assert notes == expected


class Counting:
    """Counts factorizations and solves, by the number of matrices and their size."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[tuple[str, int]] = Counter()
        for name, of in (("cholesky_ex", 0), ("solve_triangular", 0)):
            real = getattr(torch.linalg, name)

            def spy(*args: Any, real: Any = real, name: str = name, of: int = of, **kwargs: Any) -> Any:
                b, r = args[of].shape[0], args[of].shape[-1]
                if name == "solve_triangular":
                    name = "inverse" if args[1].shape[-2:] == (r, r) else "solve"
                self.seen[name, r] += b
                return real(*args, **kwargs)

            monkeypatch.setattr(torch.linalg, name, spy)


@pytest.mark.parametrize(
    ("name", "factorizations"), [("random", 2), ("condition 1e+10", 3), ("duplicate columns", 4), ("zero columns", 3)]
)
def test_each_matrix_is_factored_by_one_rank(name: str, factorizations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    b, r = 4, 12
    B = torch.stack([MATRICES[name](64, r) for _ in range(b)])
    counted = Counting(monkeypatch)
    _, notes = on_ranks(orthonormalize_on_shards, B, (0.25,) * 4)
    assert counted.seen["cholesky_ex", r] == b * factorizations
    assert counted.seen["inverse", r] == 0
    assert counted.seen["solve", r] == b * 4 * len(notes) // 2  # each rank divides its rows


def test_operations_where_the_host_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last pass, one factorization by panels of 64 columns, whose blocks are factored twice."""
    for name in ("random", "half the rank"):
        b, r = 2, 192
        B = torch.stack([MATRICES[name](400, r) for _ in range(b)]).float()
        counted = Counting(monkeypatch)
        on_ranks(orthonormalize_on_shards, B, (0.5, 0.5), precision="bf16x3")
        monkeypatch.undo()
        assert counted.seen == {
            ("cholesky_ex", r): 3 * b,
            ("cholesky_ex", 64): 2 * 3 * b,
            ("inverse", r): 3 * b,
            ("solve", 64): b,
            ("inverse", 64): b,
        }


@pytest.mark.parametrize("turn", range(5))
def test_matrices_are_dealt_evenly(turn: int) -> None:
    from orthon.sharding.line import Line
    from orthon.sharding.ranks import Ranks

    for count, size in [(0, 3), (1, 4), (3, 3), (7, 3), (9, 4)]:
        ranks = Ranks(range(size), [Line(range(size), 0, None)])
        sizes = ranks.dealt(count, turn=turn)
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        with_the_next = [a + b for a, b in zip(sizes, ranks.dealt(5, turn=turn + count), strict=True)]
        assert max(with_the_next) - min(with_the_next) <= 1


def test_parts_of_different_scales_add_up_in_any_order() -> None:
    r = 7
    parts = [randn(3, 20, r).roll(i, 1) for i in range(4)]
    scales = [
        2.0 ** torch.randint(-300, 300, (3, r), generator=torch.Generator().manual_seed(i)).double() for i in range(4)
    ]
    scales[2][:, 1] = 0
    packed = [torch.cat([pack_upper(B.mT @ B), s], 1) for B, s in zip(parts, scales, strict=True)]
    packed[2][:, :-r] = pack_upper((parts[2] * (scales[2] > 0)[:, None]).mT @ (parts[2] * (scales[2] > 0)[:, None]))
    once = _to_one_scale(torch.stack(packed), r)
    pairs = [_to_one_scale(torch.stack(packed[i : i + 2]), r) for i in (0, 2)]
    torch.testing.assert_close(_to_one_scale(torch.stack(pairs), r), once, rtol=1e-14, atol=1e-14)
    largest = torch.stack(scales).amax(0)
    assert torch.equal(once[:, -r:], largest)
    whole = torch.cat([B * (s / largest)[:, None] for B, s in zip(parts, scales, strict=True)], 1)
    expected = (whole.mT @ whole).triu()
    torch.testing.assert_close(unpack_upper(once[:, :-r], r).triu(), expected, rtol=1e-13, atol=1e-13)
    alone = _to_one_scale(packed[0][None].clone(), r)
    assert torch.equal(alone, packed[0])


@pytest.mark.parametrize("r", [1, 2, 5, 8])
def test_packing(r: int) -> None:
    A = randn(2, r, r)
    packed = pack_upper(A)
    assert packed.shape == (2, packed_size(r))
    assert torch.equal(unpack_upper(packed, r).triu(), A.triu())


def test_dropping_by_panels() -> None:
    """Columns that depend on others are dropped, in any panel, and the factor is that of the rest."""
    for r in (40, 130, 300):
        B = torch.linalg.qr(randn(400, r)).Q + 1e-3 * randn(400, r)
        for copy, of in [(3, 0), (r - 1, 1), (r // 2, r // 2 - 1)]:
            B[:, copy] = B[:, of]
        dead = torch.zeros(r, dtype=torch.bool)
        dead[5] = True
        B[:, 5] = 0
        B /= torch.linalg.vector_norm(B, dim=0).where(~dead, 1)
        L, live = cholesky_dropping_((B.mT @ B)[None].mT, ~dead[None], 1e-12, least=0.5)
        expected = ~dead
        expected[[3, r - 1, r // 2]] = False
        assert torch.equal(live[0], expected)
        kept = B[:, expected]
        torch.testing.assert_close(
            L[0][expected][:, expected], torch.linalg.cholesky(kept.mT @ kept), rtol=0, atol=1e-14
        )
        assert torch.equal(L[0][~expected], torch.eye(r).double()[~expected])
        assert not L[0][expected][:, ~expected].any()


@pytest.mark.parametrize("r", [3, 256, 257, 700])
def test_inverse_by_halves(r: int) -> None:
    B = randn(2, r, r)
    L = torch.linalg.cholesky(B @ B.mT / r + torch.eye(r))
    W = inverted_by_halves(L)
    torch.testing.assert_close(W, inverted(L), rtol=0, atol=1e-12)
    assert not W.tril(-1).any()


SCALES = {F32: (1e-36, 1e-20, 1.0, 1e15, 1e36), F64: (1e-300, 1e-160, 1.0, 1e155, 1e300)}


@pytest.mark.parametrize("dtype", SCALES, ids=str)
@pytest.mark.parametrize("spread", SPREADS)
def test_unit_columns_in_one_collective(spread: str, dtype: torch.dtype) -> None:
    scales = SCALES[dtype]
    count = len(scales)
    B = randn(3, 40, count).to(dtype)
    B[1] *= torch.tensor(scales, dtype=dtype)  # beside each other
    B[2, ::2] = 0
    B[2, :, 1] = 0
    for scale in scales:
        R = torch.stack([B[0] * scale, B[1], B[2] * scale])
        found, notes = on_ranks(unit_columns_on_shards, R, SPREADS[spread])
        check_equal(found, unit_columns(R.clone()), 4 * torch.finfo(dtype).eps, f"{scale:.0e}")
        numbers = 3 * count * (3 if dtype == F64 else 1)
        assert notes == [("sum", [numbers] * len(SPREADS[spread]))]


def test_both_factors_in_terms_of_the_same_noise() -> None:
    """P of M Q, and Q of Mᵀ P, whose columns are dead where those of P are, and more of which are noise."""
    M, Q = randn(50, 6) @ randn(6, 40), randn(40, 12)
    M = torch.stack([M, 1e-30 * M, 0 * M])
    left = orthonormalize(M @ Q)
    R = M.mT @ left.vectors
    assert 0 < left.live.sum() < left.live.numel()
    for make, on_shards in ((orthonormalize, orthonormalize_on_shards), (unit_columns, unit_columns_on_shards)):
        found, _ = on_ranks(on_shards, R, (0.2, 0.8, 0.0), left=left)
        check_equal(found, make(R.clone(), left=left), 1e-10, str(make))


def test_nonfinite_columns_end_as_they_do_in_one_process() -> None:
    """No rank waits for another one, and other matrices are as ever."""
    for value in (float("nan"), float("inf")):
        B = torch.stack([randn(30, 5)] * 3)
        B[1, 7, 2] = value
        for make, on_shards in ((orthonormalize, orthonormalize_on_shards), (unit_columns, unit_columns_on_shards)):
            found, _ = on_ranks(on_shards, B, (0.5, 0.5))
            expected = make(B[:1].clone())
            for i in (0, 2):
                torch.testing.assert_close(found.vectors[i : i + 1], expected.vectors, rtol=0, atol=1e-12)


def test_the_lockstep_notices_ranks_that_differ() -> None:
    def make(ranks: LockstepRank, index: int) -> Any:
        x = torch.ones(2, 3)
        return ranks.sum(x) if index else ranks.gather_matrices(x[:1], 2)

    with pytest.raises(AssertionError, match="different collectives"):
        in_lockstep(make, 2)


@pytest.mark.parametrize(("m", "r"), [(64, 16), (256, 64), (1024, 64), (4096, 8)])
def test_equal_rows(m: int, r: int) -> None:
    """A factorization that breaks down by rounding is made again by the rank that has it."""
    for seed in range(10):
        v = torch.randn(1, r, generator=torch.Generator().manual_seed(seed))
        found, _ = on_ranks(orthonormalize_on_shards, (torch.full((m, 1), 0.7) @ v)[None], (0.5, 0.5))
        assert found.size.isfinite().all(), seed
        assert found.live.sum() == 1, seed
