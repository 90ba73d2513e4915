"""Provisional."""

import torch
from orthon.linalg.gram import gram_sum

POLAR_METHODS = ("polar_express", "newton_schulz", "svd")


def polar_dtype(dtype, device):
    return dtype if dtype == torch.float64 else torch.float32


def polar(U, *, method, steps, dtype=None):
    if method == "svd":
        if U.is_meta:
            return torch.empty_like(U)
        W, S, V = torch.linalg.svd(U, full_matrices=False)
        live = S > 1e-6 * S[..., :1]
        return (W * live[..., None, :]) @ V
    X = U / U.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X


def polar_on_shards(U, ranks, *, method, steps, dtype=None):
    A = yield from gram_sum(U, ranks)
    if A.is_meta:
        return torch.empty_like(U)
    A = (A.triu() + A.triu(1).mT).double()
    if method == "svd":
        L, V = torch.linalg.eigh(A)
        z = torch.where(L > 1e-12 * L[..., -1:], 1 / L.clamp(min=1e-300).sqrt(), 0)
        return (U.double() @ (V * z[..., None, :]) @ V.mT).to(U.dtype)
    Z = torch.eye(A.shape[-1], dtype=A.dtype).expand_as(A)
    t = A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-60)
    A, Z = A / t, Z / t.sqrt()
    for _ in range(steps):
        W = 3.4445 * torch.eye(A.shape[-1], dtype=A.dtype) - 4.775 * A + 2.0315 * A @ A
        A, Z = W @ A @ W, Z @ W
    return (U.double() @ Z).to(U.dtype)


def polar_flops(m, n, *, method, steps):
    s, l = sorted((m, n))
    return steps * (4 * s * s * l + 2 * s**3)


def shard_cost(m, n, *, method, steps):
    return 1, 4 * m * n * n + steps * 6 * n**3
