"""What mypy refuses of the options of optimizers: `make lint` checks this file, nothing runs it.

An error that is no longer found makes its "type: ignore" unused, which is an error in turn.
"""

import torch
from torch import Tensor, nn

import orthon

W = [nn.Parameter(torch.zeros(3, 2))]


def right() -> None:
    orthon.Dion(W, 0.1, rank_fraction=0.5, product_dtype=torch.bfloat16, nonfinite="skip", weight_decay=Tensor([0.1]))
    orthon.Muon(W, lr=Tensor([0.1]), nesterov=False, view=orthon.MatrixView(blocks=3))
    orthon.NorMuon(W, beta2=0.9, polar_route="owners", betas=(0.9, 0.99))
    orthon.Dion2(W, fraction=0.5, view={"blocks": 3})
    orthon.Dion3(W, fraction=0.5, beta2=0.9)


def wrong_names() -> None:
    orthon.Dion(W, rank_fracton=0.5)  # type: ignore[call-arg]
    orthon.Muon(W, beta2=0.9)  # type: ignore[call-arg]
    orthon.NorMuon(W, rank_fraction=0.5)  # type: ignore[call-arg]
    orthon.Dion2(W, polar_route="auto")  # type: ignore[call-arg]
    orthon.Dion3(W, wieght_decay=0.1)  # type: ignore[call-arg]


def wrong_types() -> None:
    orthon.Dion(W, "0.1")  # type: ignore[arg-type]
    orthon.Dion(W, rank_fraction="half")  # type: ignore[arg-type]
    orthon.Muon(W, polar_dtype="bfloat16")  # type: ignore[arg-type]
    orthon.NorMuon(W, beta2=(0.9, 0.95))  # type: ignore[arg-type]
    orthon.Dion2(W, view="convolution")  # type: ignore[arg-type]
    orthon.Dion3(W, seed=0.5)  # type: ignore[arg-type]
