"""Orthon's optimizers in torchtitan: a container of them, one for each part of the model, and a train spec with it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config import Optimizer as TitansOptimizer
from torchtitan.protocols.train_spec import TrainSpec, get_train_spec

from orthon.algorithms import RULES
from orthon.algorithms.options import Group, MutableGroup
from orthon.integrations.torchtitan_config import arguments, of_torchtitan, optimizer_class
from orthon.model.roles import HIDDEN
from orthon.optimizers.common import NamedOptimizer
from orthon.step.names import plain_names

_OF_TORCHTITAN = ("Adam", "AdamW")

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_NAMES = ".param_names"


def train_spec(name: str, **options: Any) -> TrainSpec:
    """Return torchtitan's train spec of a model, with optimizers of Orthon's.

    `optimizer.name` in the job config chooses: a name of `orthon.rules()`, or "Adam" and "AdamW" for torchtitan's own.
    Import a module with this line by `experimental.custom_import`::

        register_train_spec("llama3", train_spec("llama3"))

    Args:
        name: of a model that torchtitan has, such as "llama3".
        options: of `for_model`, for what a config file cannot hold, such as `overrides`. They precede the config.
    """
    spec = get_train_spec(name)
    return replace(spec, build_optimizers_fn=OptimizersBuilder(spec.build_optimizers_fn, options))


@dataclass(frozen=True)
class OptimizersBuilder:
    """What a train spec has as `build_optimizers_fn`.

    Attributes:
        of_the_model: the builder that the model came with. It makes torchtitan's own optimizers, and what it does
            before every step, such as the balance of experts, is done before Orthon's steps, too.
        options: of `for_model`. They precede the config.
    """

    of_the_model: Callable[..., OptimizersContainer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, model_parts: list[nn.Module], optimizer_config: Any, parallel_dims: Any, ft_manager: Any = None
    ) -> OptimizersContainer:
        """Return the container for all parts of the model that this process has.

        Args:
            model_parts: parts, after they have been sharded.
            optimizer_config: torchtitan's `Optimizer`, or the one of `orthon.integrations.torchtitan_config`.
            parallel_dims: torchtitan's `ParallelDims`.
            ft_manager: torchtitan's `FTManager`, or None.

        Raises:
            ValueError: for a setting that cannot be; it names the setting.
            NotImplementedError: for fault tolerance by torchft.
        """
        if optimizer_config.name in _OF_TORCHTITAN:
            if self.options:
                raise ValueError(
                    f"optimizer.name is {optimizer_config.name!r}, torchtitan's own, which does not take the options "
                    f"of train_spec: {', '.join(self.options)}"
                )
            return self.of_the_model(model_parts, of_torchtitan(optimizer_config), parallel_dims, ft_manager)
        if optimizer_config.early_step_in_backward:
            raise ValueError(
                "optimizer.early_step_in_backward should be false: Orthon updates matrices of one shape together, and "
                "the processes share that work, which needs all gradients"
            )
        if ft_manager is not None and ft_manager.enabled:
            raise NotImplementedError("fault_tolerance.enable should be false: Orthon has not been tried with torchft")
        optimizer = optimizer_class(optimizer_config)
        options = {**arguments(optimizer_config), **self.options}
        if parallel_dims.dp_replicate_enabled and not parallel_dims.fsdp_enabled:  # plain tensors tell no mesh
            options.setdefault("replicas", parallel_dims.get_mesh("dp_replicate"))
        stages = parallel_dims.get_mesh("pp").get_group() if parallel_dims.pp_enabled else None
        container = Optimizers(model_parts, optimizer, options, stages=stages)
        theirs = self.of_the_model(model_parts, TitansOptimizer(), parallel_dims, None)
        for hook in theirs._optimizer_step_pre_hooks.values():
            container.register_step_pre_hook(hook)
        return container


class Optimizers(OptimizersContainer):  # type: ignore[misc]
    """One of Orthon's optimizers for each part of a model that this process has.

    torchtitan saves the learning rates of the first part's groups, and loads them for all parts, on all stages. So the
    optimizers of all parts have the same groups in the same order. A group of which a part has nothing is empty there.

    Args:
        model_parts: parts, after they have been sharded.
        optimizer_cls: one of Orthon's.
        optimizer_kwargs: keyword arguments of its `for_model`.
        stages: the processes that have the stages of a pipeline; None if there is none.
    """

    def __init__(
        self,
        model_parts: list[nn.Module],
        optimizer_cls: type[NamedOptimizer],
        optimizer_kwargs: Mapping[str, Any],
        *,
        stages: dist.ProcessGroup | None = None,
    ) -> None:
        self.model_parts = model_parts
        self.optimizers = [optimizer_cls.for_model(part, **optimizer_kwargs) for part in model_parts]
        give_same_groups(self.optimizers, stages)
        self._validate_length(len(model_parts))
        params = [param for part in model_parts for param in part.parameters() if param.requires_grad]
        self._post_init(params, dict(self.optimizers[0].defaults))

    def state_dict(self) -> dict[str, Any]:
        """Return the flat state, by parameter names. What each group's parameters are called is not in it.

        That is another list on other stages, which torch would compare.
        """
        state = {}
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            with _without_empty_groups(optimizer):
                state.update(get_optimizer_state_dict(part, optimizer, options=_FLAT))
        return {key: value for key, value in state.items() if not key.endswith(_NAMES)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a flat state, also one that was saved with other stages or other shards."""
        for part, optimizer in zip(self.model_parts, self.optimizers, strict=True):
            names = {
                f"param_groups.{name}{_NAMES}": group["param_names"]
                for group in optimizer.param_groups
                for name in plain_names(group["param_names"])
            }
            with _without_empty_groups(optimizer):
                set_optimizer_state_dict(part, optimizer, state_dict | names, options=_FLAT)


@contextmanager
def _without_empty_groups(optimizer: NamedOptimizer) -> Iterator[None]:
    """Hide the groups without parameters, which flat states cannot have. What is loaded may replace the others."""
    before = optimizer.param_groups
    optimizer.param_groups = [group for group in before if group["params"]]
    try:
        yield
    except BaseException:
        optimizer.param_groups = before
        raise
    others = iter(optimizer.param_groups)
    optimizer.param_groups = [next(others) if group["params"] else group for group in before]


def give_same_groups(optimizers: Sequence[NamedOptimizer], stages: dist.ProcessGroup | None) -> None:
    """Give optimizers the groups of all of them, in one order, which does not depend on how the model is divided.

    Args:
        optimizers: of the parts that this process has. They have made no step yet.
        stages: processes that have the other parts; all of them must call this. None if there are none.
    """
    own = {_key(group): _without_parameters(group) for optimizer in optimizers for group in optimizer.param_groups}
    everywhere = [own]
    if stages is not None:
        everywhere = [{} for _ in range(dist.get_world_size(stages))]
        dist.all_gather_object(everywhere, own, group=stages)
    groups = {key: group for found in everywhere for key, group in found.items()}
    names = dict(zip(sorted(groups), _numbered([groups[key]["name"] for key in sorted(groups)]), strict=True))
    for optimizer in optimizers:
        has = {_key(group) for group in optimizer.param_groups}
        for key in groups.keys() - has:
            optimizer.add_param_group({"params": [], **groups[key]})
        optimizer.param_groups.sort(key=partial(_place, optimizer.algorithm))
        for group in optimizer.param_groups:
            group["name"] = names[_key(group)]


def _without_parameters(group: Group) -> MutableGroup:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _place(main: str, group: Group) -> tuple[bool, bool, str]:
    """Return what sorts groups. Matrices come first, as torchtitan logs the learning rate of the first group."""
    of_whole_model = not RULES[main].work.takes_matrices  # its algorithm does not tell matrices then
    return group["algorithm"] != main, of_whole_model and _base(group["name"]) != HIDDEN.name, _key(group)


def _key(group: Group) -> str:
    """Return a word that two groups share if nothing but their parameters and numbers differ."""
    options = _without_parameters(group) | {"name": ""}
    return repr([_base(group["name"]), sorted((name, str(value)) for name, value in options.items())])


def _base(name: str) -> str:
    return re.sub(r" \d+$", "", name)


def _numbered(names: list[str]) -> list[str]:
    """Return the names with numbers from the second of each kind on."""
    seen: Counter[str] = Counter()
    result = []
    for name in map(_base, names):
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return result
