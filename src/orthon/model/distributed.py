"""What a model tells about the processes that train it: its replicas, and shards of its frozen part."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from orthon.sharding import Layouts, Ranks, is_dtensor, local, takes_part
from orthon.step.words import warn


def replicas_of(model: nn.Module) -> ProcessGroup | None:
    """Return the processes of DistributedDataParallel, wherever it is in a model or, in Lightning, around it.

    None if there is none, or if it is used with several process groups: then no group is that of all parameters.
    """
    around: list[object] = [*model.modules(), *_around(model)]
    groups = {module.process_group for module in around if isinstance(module, DistributedDataParallel)}
    return groups.pop() if len(groups) == 1 else None


def ranks_of_frozen(model: nn.Module) -> tuple[Ranks, torch.device] | None:
    """Return the ranks that hold shards of what is frozen in a model, the most there are, and the shards' device."""
    layouts = Layouts(None)
    found = [
        (layouts.of(param).everyone, local(param).device)
        for param in model.parameters()
        if not param.requires_grad and is_dtensor(param) and takes_part(param)
    ]
    return max((each for each in found if each[0].size > 1), key=lambda each: each[0].size, default=None)


def warn_if_idle(model: nn.Module, groups: Sequence[Mapping[str, Any]], algorithm: str, owner: str) -> None:
    """Warn if no parameter of a model goes to an optimizer's own algorithm, with the way out if there is one.

    Flat parameters of FullyShardedDataParallel (FSDP1) are left to the optimizer, which refuses them.
    """
    params = [param for group in groups for _, param in group["params"]]
    if not params or any(group["algorithm"] == algorithm for group in groups):
        return
    if any(getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False) for param in params):
        return
    if any(hasattr(param, "ds_id") for param in params) or all(param.numel() == 0 for param in params):
        way = "they are empty, as ZeRO stage 3 leaves them; shard the model with fully_shard(model) instead"
    else:
        way = "print(orthon.explain(optimizer)) tells why, and overrides=... changes it"
    warn(
        f"{owner}.for_model: none of the {len(params)} parameters of {type(model).__name__} goes to {algorithm!r}; "
        f"{way}"
    )


def _around(model: nn.Module) -> list[object]:
    """Return what Lightning's strategy has made of a LightningModule."""
    strategy = getattr(model.__dict__.get("_trainer"), "strategy", None)
    return [getattr(strategy, "model", None)]
