"""torchtitan: its debug model, Orthon's container of optimizers, and torchtitan's schedule, in a loop of one's own.

In a real run torchtitan's trainer makes all that. Import a module with these two lines by `experimental.custom_import`,
and choose by `optimizer.name = "dion"` with `job.custom_config_module = "orthon.integrations.torchtitan_config"`::

    from orthon.integrations.torchtitan import train_spec
    register_train_spec("llama3", train_spec("llama3"))

Run: python examples/torchtitan_container.py
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.config import LRScheduler
from torchtitan.protocols.train_spec import get_train_spec

import orthon
from orthon.integrations.torchtitan import Optimizers

STEPS, BATCH, LENGTH = 50, 8, 64
TEXT = torch.tensor(list(Path(argparse.__file__).read_bytes()))

torch.manual_seed(0)
spec = get_train_spec("llama3")
arguments = spec.model_args["debugmodel"]
arguments.vocab_size, arguments.dim, arguments.n_layers, arguments.max_seq_len = 256, 128, 2, LENGTH
model = spec.model_cls(arguments)
with torch.no_grad():
    model.init_weights()

parts = [model]  # of a pipeline; here there is none
optimizers = Optimizers(parts, orthon.Dion, {"lr": 0.02, "rank_fraction": 1 / 4})
schedules = build_lr_schedulers(optimizers, LRScheduler(warmup_steps=5), training_steps=STEPS)
for group in optimizers.optimizers[0].param_groups:
    print(f"{group['name']}: {len(group['params'])} tensors, {group['algorithm']} at lr {group['initial_lr']}")

for step in range(1, STEPS + 1):
    starts = torch.randint(len(TEXT) - LENGTH, (BATCH, 1))
    pieces = TEXT[starts + torch.arange(LENGTH + 1)]
    loss = nn.functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())
    loss.backward()
    optimizers.step()
    schedules.step()
    optimizers.zero_grad()
    if step == 1 or step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
print(f"the state has {len(optimizers.state_dict())} entries, such as {next(iter(optimizers.state_dict()))}")
