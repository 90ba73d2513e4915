"""How the orthonormalization multiplies float32 matrices: in float32, or faster and less exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from orthon.linalg.device import device_type
from orthon.linalg.gram import plain_gram
from orthon.linalg.precision import Noise, float32_products, full_precision

BF16 = torch.bfloat16

_NONE = Noise(of_column=0.0, of_matrix=0.0)


@dataclass(frozen=True)
class Arithmetic:
    """The functions that multiply in the passes of Cholesky QR.

    The last Gram matrix alone decides how orthonormal the result is: the error of PᵀP is the error of this matrix. Its
    columns have unit length. So an entry of it has at most the relative error of a product of two numbers:

    - float32: a few epsilon, from the sum.
    - tf32: 2⁻¹⁰, as each number is rounded to 11 bits; 2⁻⁹ on GPUs that cut the other bits off.
    - bf16x3: 2⁻¹⁵, as each number keeps 16 bits.

    Rounding errors mostly cancel. `tests/test_orthonormalize_precision.py` finds up to 3e-4 in tf32 and 4e-6 in bf16x3.

    A column may be barely more than noise. The last pass keeps it if at least half of it is orthogonal to the columns
    before it, and then makes the error up to 7 times larger. Very ill-conditioned matrices have such columns; of
    Vandermonde's the error is up to 2e-5 in bf16x3.

    The earlier Gram matrices only lower the condition number, so they may be rough. Products with inverse triangles may
    not, because they change which space the columns span. Only the last one may, because what it adds is small.

    Attributes:
        rough_gram: returns Bᵀ B (b, r, r) of B (b, m, r) in the first two passes.
        gram: returns the same in the last pass.
        times: returns B W (b, m, r) of B (b, m, r) and W (b, r, r) in the first two passes. If it is None, all passes
            solve triangular systems in float32 instead.
        correct: returns the same in the last pass, for small W.
        noise: of these products, beside the rounding of B.
        shift: what is added to the diagonal of a Gram matrix with unit diagonal, beside what its sums need.
    """

    rough_gram: Callable[[Tensor], Tensor]
    gram: Callable[[Tensor], Tensor]
    times: Callable[[Tensor, Tensor], Tensor] | None = None
    correct: Callable[[Tensor, Tensor], Tensor] | None = None
    noise: Noise = _NONE
    shift: float = 0.0


def product_in_tf32(A: Tensor, B: Tensor) -> Tensor:
    """Return A B (b, m, k) of A (b, m, n) and B (b, n, k), whose entries are rounded to 11 bits."""
    with float32_products("tf32"):
        return A @ B


def gram_in_tf32(B: Tensor) -> Tensor:
    """Return Bᵀ B (b, r, r) of B (b, m, r), whose entries are rounded to 11 bits."""
    return product_in_tf32(B.mT, B)


def product_in_bf16(A: Tensor, B: Tensor) -> Tensor:
    """Return A B (b, m, k) in float32 of A (b, m, n) and B (b, n, k), which are rounded to bfloat16."""
    A, B = A.to(BF16), B.to(BF16)
    if device_type(A.device) == "cuda":
        return torch.bmm(A, B, out_dtype=torch.float32)
    with full_precision():  # elsewhere in float32, in which products of two bfloat16 numbers are exact
        return A.float() @ B.float()


def gram_in_bf16(B: Tensor) -> Tensor:
    """Return Bᵀ B (b, r, r) in float32 of B (b, m, r), which is rounded to bfloat16."""
    B = B.to(BF16)
    return product_in_bf16(B.mT, B)


def gram_in_bf16x3(B: Tensor) -> Tensor:
    """Return Bᵀ B (b, r, r) of B (b, m, r), as (H + L)ᵀ (H + L) with H and L in bfloat16.

    Lᵀ L is small, but without it eigenvalues could be as low as −r·2⁻¹⁶, if the r columns have their large entries in
    the same few rows. Such a matrix has no Cholesky factor.
    """
    r = B.shape[-1]
    parts = _side_by_side(B, 2)
    high, low = parts[..., :r], parts[..., r:]
    products = product_in_bf16(high.mT, parts)
    mixed = products[..., r:]
    gram: Tensor = products[..., :r] + mixed + mixed.mT
    return gram.add_(product_in_bf16(low.mT, low))


def product_in_bf16x3(A: Tensor, B: Tensor) -> Tensor:
    """Return A B (b, m, k) of A (b, m, n) and B (b, n, k), as (H + L)(H + L) in bfloat16 without the small L L."""
    high, low = _side_by_side(B, 2).chunk(2, -1)
    return product_in_bf16(_side_by_side(A, 3), torch.cat([high, high, low], -2))


def _side_by_side(A: Tensor, count: int) -> Tensor:
    """Return [H L] or [H L H], (b, m, count·n), of A (b, m, n): A rounded to bfloat16, and the rest, rounded as well.

    [H L] has as many bytes as A in float32. There are no other temporaries.
    """
    parts = torch.empty(*A.shape[:-1], count, A.shape[-1], dtype=BF16, device=A.device)
    high, low, *again = parts.unbind(-2)
    high.copy_(A)
    torch.sub(A, high, out=low)
    for copy in again:
        copy.copy_(high)
    return parts.flatten(-2)


_ARITHMETICS = {
    "float32": Arithmetic(plain_gram, plain_gram),
    "tf32": Arithmetic(
        rough_gram=gram_in_bf16,
        gram=gram_in_tf32,
        times=product_in_tf32,
        correct=product_in_bf16,
        noise=Noise(of_column=2.0**-8, of_matrix=2.0**-11),
    ),
    "bf16x3": Arithmetic(
        rough_gram=gram_in_bf16x3,
        gram=gram_in_bf16x3,
        times=product_in_bf16x3,
        correct=product_in_bf16x3,
        noise=Noise(of_column=2.0**-14, of_matrix=2.0**-16),
        shift=2.0**-16,
    ),
}

PRECISIONS = tuple(_ARITHMETICS)


def arithmetic(precision: str, dtype: torch.dtype) -> Arithmetic:
    """Return the arithmetic of a precision for matrices of this dtype. float64 is always multiplied in float64."""
    return _ARITHMETICS["float32" if dtype == torch.float64 else precision]


def default_precision(storage: torch.dtype, device: torch.device) -> str:
    """Return the fastest precision that keeps columns orthonormal enough for a state stored as `storage`.

    That is "tf32" for 16 bits and "bf16x3" for float32; `Arithmetic` says how orthonormal they make the columns. Only
    on CUDA devices is anything faster than float32.
    """
    if device_type(device) != "cuda" or storage == torch.float64:
        return "float32"
    return "tf32" if storage.itemsize == 2 else "bf16x3"


def check_precision(precision: str | None, device: torch.device) -> None:
    """Raise a ValueError if a device does not have the arithmetic of a precision."""
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, but the parameter is on {device}; None takes what is fastest "
            "there, 'float32' and 'bf16x3' work anywhere"
        )
