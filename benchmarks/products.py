"""Large products alone: what is left of the step of the paper's Dion if everything else took no time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.counts import update_rank
from benchmarks.timing import Work


def dion_products(params: Sequence[nn.Parameter], fraction: float) -> Work:
    """Return the four large products of the paper's Dion on each matrix, M Q, Mᵀ P, M − P Rᵀ and X − P Qᵀ, as a work.

    They are made as well as torch can: into memory that is there already, matrix by matrix, the last two fused with
    their additions.

    Args:
        params: matrices, each (m, n), whose shapes and dtypes count.
        fraction: of the rank.
    """
    matrices = [_Products(param.detach(), update_rank((param.shape[0], param.shape[1]), fraction)) for param in params]

    def work() -> None:
        for each in matrices:
            each()

    return work


class _Products:
    def __init__(self, like: Tensor, r: int) -> None:
        turned = like.mT if like.shape[0] > like.shape[1] else like
        short, long = turned.shape
        self.M, self.X = torch.randn_like(like), torch.randn_like(like)
        self.M, self.X = (self.M.mT, self.X.mT) if turned is not like else (self.M, self.X)
        self.Q, self.R = (like.new_empty(long, r).normal_() / long**0.5 for _ in range(2))
        self.P = like.new_empty(short, r).normal_() / short**0.5
        self.B = torch.empty_like(self.P)

    def __call__(self) -> None:
        torch.mm(self.M, self.Q, out=self.B)
        torch.mm(self.M.mT, self.P, out=self.R)
        self.M.addmm_(self.P, self.Q.mT, alpha=-0.05)  # Q in place of R, so that M stays of one size
        self.X.addmm_(self.P, self.Q.mT, alpha=-0.01)
