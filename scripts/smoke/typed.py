"""Checked by mypy and pyright in an environment with the wheel, nothing runs it: right uses pass, wrong ones do not."""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import torch
from torch import nn

import orthon

model = nn.Linear(3, 2)

optimizer = orthon.Dion.for_model(model, lr=0.02)
assert_type(optimizer, orthon.Dion)
assert_type(orthon.explain(optimizer), orthon.Explanation)
assert_type(orthon.__version__, str)
orthon.Muon(model.parameters(), lr=0.02, others="adamw").step()
torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

orthon.Dion(model.parameters(), rank_fracton=0.5)  # type: ignore[call-arg]
orthon.Muon(model.parameters(), lr="0.02")  # type: ignore[arg-type]
