import pytest
import torch
from torch import nn

from orthon.train.processes.ranks import Processes
from orthon.train.step.clipping import clip_gradients
from orthon.train.step.optimizers import Optimizers

ALONE = Processes(torch.device("cpu"))


@pytest.mark.parametrize(
    ("limit", "matrices_too", "matrix_norm", "other_norm"),
    [(1.0, False, 3.0, 1.0), (1.0, True, 0.6, 0.8), (0.0, False, 3.0, 4.0), (10.0, True, 3.0, 4.0)],
)
def test_clipping(limit: float, matrices_too: bool, matrix_norm: float, other_norm: float) -> None:
    matrix, other, unused = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    matrix.grad, other.grad = torch.full((2, 2), 1.5), torch.full((2, 2), -2.0)
    norm = clip_gradients(Optimizers(each=(), matrices=(matrix,), others=(other, unused)), limit, matrices_too, ALONE)
    assert norm.item() == pytest.approx(5.0)
    assert matrix.grad.norm().item() == pytest.approx(matrix_norm, rel=1e-5)
    assert other.grad.norm().item() == pytest.approx(other_norm, rel=1e-5)
