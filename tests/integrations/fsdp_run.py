"""FSDP2 and DCP without anything else: `torchrun -m tests.integrations.fsdp_run FOLDER` prints the losses of a run.

After half of it, model and optimizer are saved, and new ones go on.
"""

import sys
import warnings

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import orthon
from tests.integrations.support.processes import end
from tests.integrations.test_plain_pytorch import GPT, remember, train


def made() -> tuple[GPT, orthon.Dion]:
    model = GPT()
    for block in model.h:
        fully_shard(block)
    fully_shard(model)
    optimizer = orthon.Dion.for_model(model, lr=0.02)
    remember(optimizer)
    return model, optimizer


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    model, optimizer = made()
    losses = train(model, optimizer, range(4))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=sys.argv[1])

    model, optimizer = made()
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=sys.argv[1])
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    losses += train(model, optimizer, range(4, 8))
    sys.stdout.write(f"LOSSES {' '.join(map(str, losses))}\n")
    end()


if __name__ == "__main__":
    main()
