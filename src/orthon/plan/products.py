"""How many floating-point operations matrix products, factorizations and triangular solves take."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orthon.linalg.device import device_type

aten = torch.ops.aten

Args = tuple[Any, ...]

# The sizes of a product: how many there are, and m, n, k of each: (m, k) times (k, n).
Sizes = tuple[int, int, int, int]


def _of_two(first: int) -> Callable[[Args], Sizes]:
    """Return what finds the sizes of A B (..., m, n), where A (..., m, k) is the argument of a given place."""

    def sizes(args: Args) -> Sizes:
        A, B = args[first].shape, args[first + 1].shape
        return math.prod(A[:-2]), A[-2], B[-1], A[-1]

    return sizes


def _of_matrix_and_vector(first: int) -> Callable[[Args], Sizes]:
    def sizes(args: Args) -> Sizes:
        m, k = args[first].shape
        return 1, m, 1, k

    return sizes


def _of_vectors(args: Args) -> Sizes:
    return 1, 1, 1, args[0].numel()


def _linear(args: Args) -> Sizes:
    x, weight = args[0].shape, args[1].shape
    return 1, math.prod(x[:-1]), weight[0], x[-1]


_PRODUCTS: dict[Any, tuple[int, Callable[[Args], Sizes]]] = {
    # which argument has the dtype of the product, and its sizes
    aten.mm: (0, _of_two(0)),
    aten.bmm: (0, _of_two(0)),
    aten.addmm: (1, _of_two(1)),
    aten.addmm_: (1, _of_two(1)),
    aten.baddbmm: (1, _of_two(1)),
    aten.baddbmm_: (1, _of_two(1)),
    aten.addbmm: (1, _of_two(1)),
    aten.addbmm_: (1, _of_two(1)),
    aten.mv: (0, _of_matrix_and_vector(0)),
    aten.addmv: (1, _of_matrix_and_vector(1)),
    aten.addmv_: (1, _of_matrix_and_vector(1)),
    aten.dot: (0, _of_vectors),
    aten.vdot: (0, _of_vectors),
    aten.linear: (0, _linear),
}


def product_of(packet: Any, args: Args) -> tuple[str, Sizes] | None:
    """Return at which rate of a `Machine` an operation multiplies, and the sizes; None for one that does not multiply.

    Products of float32 run at the rate "tf32" if torch's setting says so at this moment, and they are on a GPU.

    Args:
        packet: the operation, without its overload.
        args: its arguments.
    """
    found = _PRODUCTS.get(packet)
    if found is None:
        return None
    which, sizes = found
    return _rate(args[which]), sizes(args)


def _rate(x: Tensor) -> str:
    if x.dtype == torch.float32 and device_type(x.device) == "cuda":
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    return _RATES.get(x.dtype, "float32")


_RATES = {torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "bfloat16"}


# Golub and Van Loan, "Matrix Computations", 4th ed., count the operations of what follows.


def _cholesky(A: torch.Size, *_: torch.Size) -> float:
    return math.prod(A) * A[-1] / 3


def _solve(A: torch.Size, B: torch.Size, *_: torch.Size) -> float:
    """Return r² for each column or row that is solved."""
    batch = max(math.prod(A[:-2]), math.prod(B[:-2]))  # one of them may be expanded
    return float(batch * B[-1] * B[-2] * A[-1])


def _inverse(A: torch.Size, *_: torch.Size) -> float:
    return 2.0 * math.prod(A) * A[-1]


def _eigenvectors(A: torch.Size, *_: torch.Size) -> float:
    return 9.0 * math.prod(A) * A[-1]


def _svd(A: torch.Size, *_: torch.Size) -> float:
    """Return 6 m n² + 20 n³ for m ≥ n: R-SVD with both thin factors."""
    n, m = sorted(A[-2:])
    return math.prod(A[:-2]) * (6.0 * m * n**2 + 20.0 * n**3)


def _qr(A: torch.Size, *_: torch.Size) -> float:
    """Return 4 m n² − 4/3 n³ for m ≥ n: Householder's factorization, and its thin orthonormal factor."""
    n, m = sorted(A[-2:])
    return math.prod(A[:-2]) * (4.0 * m * n**2 - 4.0 / 3.0 * n**3)


_FACTORIZATIONS: dict[Any, Callable[..., float]] = {
    aten.linalg_cholesky_ex: _cholesky,
    aten.linalg_solve_triangular: _solve,
    aten.linalg_inv_ex: _inverse,
    aten._linalg_eigh: _eigenvectors,
    aten._linalg_svd: _svd,
    aten.linalg_qr: _qr,
}


def factoring_of(packet: Any, args: Args) -> tuple[float, bool] | None:
    """Return how many operations a factorization or a solve takes, and whether in float64; None for what is neither.

    Args:
        packet: the operation, without its overload.
        args: its arguments.
    """
    found = _FACTORIZATIONS.get(packet)
    if found is None:
        return None
    return found(*(x.shape for x in args if isinstance(x, Tensor))), args[0].dtype == torch.float64
