"""The torch.optim.Optimizer: param groups, state, batches, step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from orthon.algorithms import RULES, Rule
from orthon.algorithms.options import SCHEDULER_KEYS, choice, flag
from orthon.linalg import factor_dtype
from orthon.saving.loading import fit_state
from orthon.sharding import Layouts, Step, check_placements, local, run
from orthon.sharding.matrix_view import MatrixView
from orthon.sharding.replicas import replica_group
from orthon.step.agreement import Agreement
from orthon.step.capture import Capture, check_options, check_ranks, is_capturing
from orthon.step.finite import all_finite, all_zero, nonfinite_gradients
from orthon.step.loss_scale import LossScale
from orthon.step.member import Member, Members
from orthon.step.names import parameter_names
from orthon.step.updates import Plan, Work, make_states, update

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]

# What a param group may hold beside the options of its rule.
_GROUP_KEYS = {"params", "param_names", "name", "reason", "algorithm", *SCHEDULER_KEYS}

# Batches under way at the same time, so that one computes while another communicates.
AT_ONCE = 2

_NONFINITE = choice("raise", "skip")


class MixedOptimizer(torch.optim.Optimizer):
    """An optimizer whose param groups each name the algorithm that updates them.

    It keeps torch's contract: schedulers, closures, hooks, `state_dict` and `load_state_dict`. A parameter
    without a gradient is skipped. Under a torch.amp.GradScaler an infinity or a NaN on one rank leaves the step out on
    all of them, whatever `nonfinite` says, and is decided on the device.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        algorithm: of the groups that name none.
        nonfinite: what to do at a gradient with an infinity or a NaN, before anything is changed.
            "raise": a FloatingPointError that names the parameters; costs a synchronization on a GPU.
            "skip": decide on the device, leave all weights and state as they are, and count.
        options: values for the groups that do not set them, each where the group's algorithm has it.
        replicas: the ranks that train copies of these parameters on other data, where the parameters' meshes do not
            tell: those of DistributedDataParallel, or a data-parallel axis that fully_shard does not see; a process
            group, or a device mesh with one axis. They share work, and `sync_gradients` averages over them.
        sync_gradients: average the gradients of the replicas, which nothing else does then; matrix rules average
            their factors instead where these are smaller (compressed synchronization). A missing gradient counts
            as zero.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
    """

    # Tells torch.amp.GradScaler to call `step` in any case, with `found_inf` and `grad_scale` set on the optimizer.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Params,
        *,
        algorithm: str,
        options: Mapping[str, Any],
        nonfinite: str = "raise",
        replicas: ProcessGroup | DeviceMesh | None = None,
        sync_gradients: bool = False,
    ) -> None:
        owner = type(self).__name__
        _NONFINITE.check("nonfinite", nonfinite, owner)
        self.nonfinite = nonfinite
        self._skipped: Tensor | None = None
        self._replicas = replica_group(replicas, owner)
        flag(False).check("sync_gradients", sync_gradients, owner)
        if sync_gradients and replicas is None:
            raise ValueError(f"{owner}: sync_gradients=True averages over replicas=..., but replicas is None")
        self.sync_gradients = sync_gradients
        self._begin_anew()
        self._unconsolidated = False
        rules = [_rule(algorithm, owner), *RULES.values()]
        for name, value in options.items():
            known = [rule.options[name] for rule in rules if name in rule.options]
            if not known:
                raise ValueError(f"{owner}: unknown option {name!r}; no algorithm has it")
            known[0].check(name, value, owner)
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params should be an iterable of tensors, but is one tensor")
        super().__init__(cast(Any, params), {"algorithm": algorithm, **options})

    def _begin_anew(self) -> None:
        """Forget all that is known from the steps before."""
        self._layouts = Layouts(self._replicas)
        self._members = Members(self._layouts, sync_gradients=self.sync_gradients, owner=type(self).__name__)
        self._plan = Plan()
        self._prepared: tuple[list[list[Work]], int] = [], 0  # batches that have state, and how many states there were
        self._agreement: tuple[list[int], Agreement] | None = None
        self._updated: set[tuple[int, int]] = set()  # layouts and groups that have been through a step
        self._seen: list[Member] = []  # at the last step
        self._named: dict[str, Tensor] = {}

    @property
    def skipped_steps(self) -> int:
        """How many steps `nonfinite="skip"` or a gradient scaler has left out; asking synchronizes with the device."""
        return 0 if self._skipped is None else int(self._skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options for them; everything is checked before anything changes."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(
                f"{type(self).__name__}: a param group should be a dict with 'params', but is {param_group!r}"
            )
        group = dict(param_group)
        label = f"{type(self).__name__}: param group {group.get('name', len(self.param_groups))!r}"

        rule = _rule(group.setdefault("algorithm", self.defaults["algorithm"]), label)
        for key in group.keys() - _GROUP_KEYS:
            if key not in rule.options:
                allowed = ", ".join(sorted(rule.options))
                raise ValueError(f"{label}: unknown option {key!r} for {rule.name}; it takes {allowed}")
        for name, option in rule.options.items():
            option.check(name, group.setdefault(name, self.defaults.get(name, option.default)), label)
        check_options(group, self.nonfinite, label)
        if group.get("view") is not None:
            group["view"] = _view(group["view"], label)

        _separate_names(group, label)
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        taken_names = {name for i, other in enumerate(self.param_groups) for name in parameter_names(other, i)}
        names = parameter_names(group, len(self.param_groups))
        for name, param in zip(names, group["params"], strict=True):
            where = f"{type(self).__name__}: parameter {name!r}"
            if not isinstance(param, Tensor):
                raise TypeError(f"{where}: should be a tensor, but is a {type(param).__name__}")
            if id(param) in taken:
                raise ValueError(f"{where}: is given twice; every parameter should be in one group, once")
            taken.add(id(param))
            if name in taken_names:
                raise ValueError(f"{where}: another parameter has this name; names should be unique")
            taken_names.add(name)
            try:
                check_placements(param)
            except NotImplementedError as error:
                raise NotImplementedError(f"{where}: {error}") from error
            rule.check_parameter(param, group, where)

        super().add_param_group(group)
        for key in self.defaults.keys() - rule.options.keys() - {"algorithm"}:
            group.pop(key, None)  # torch fills in every default, also those that are another algorithm's

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # torch.compile would trace the lists of parameters and batches for seconds, and fail for some rules. The public
    # torch.compiler.disable would import the compiler together with Orthon.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = self.members()
        if everything is not self._seen:
            self._refuse_swapped(everything)
        capture = self._capture(everything) if is_capturing() else None
        agreement, is_new = self._agree(everything)
        scale = LossScale.given_to(self)
        gates: dict[torch.device, Tensor] = {}
        if self.nonfinite == "raise" and scale.found_inf is None:
            self._raise_unless_finite(agreement.spread(everything, nonfinite_gradients(everything)))
        else:
            gates = self._gates(everything, agreement, scale)
        if is_new:
            check_ranks(everything, type(self).__name__)
            agreement.check_copies(everything)
        sets = self._plan(everything)
        self._prepare_state(sets, everything, gates)
        # One set of ranks after the other: each of its ranks has the same batches, but other sets have others.
        for together in sets:
            # The first time, one by one: process groups are made, which nothing else in flight may disturb.
            kinds = {work.kind for work in together}
            at_once = AT_ONCE if kinds <= self._updated else 1
            run((update(work, self.state, gates, scale) for work in together), at_once=at_once)
            self._updated |= kinds
        if everything is not self._seen:
            self._seen, self._named = everything, {member.name: member.param for member in everything}
        # The step with which torch.distributed.checkpoint makes the state has zeros for gradients.
        if self.sync_gradients and not (is_new and agreement.all(everything, all_zero(everything))):
            self._unconsolidated |= any(member.differs for member in everything)
        if capture is not None:
            capture.check_state()
        return loss

    def consolidate(self) -> None:
        """Make the state of the replicas equal, which compressed synchronization leaves different.

        All ranks must call it, before `state_dict`. Training goes on with the same updates as without.
        """
        for member in self.members():
            if member.differs and self.state.get(member.param):
                for key in member.own_state:
                    own = local(self.state[member.param][key])
                    mean = own.to(factor_dtype(own.dtype)) / member.layout.replicas.size
                    run([_into(own, member.layout.replicas.sum(mean))], at_once=1)
        self._unconsolidated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch does.

        Raises:
            RuntimeError: if compressed synchronization has left the state of the replicas different.
        """
        if self._unconsolidated:
            raise RuntimeError(
                f"{type(self).__name__}: the momentum differs between replicas, as sync_gradients=True leaves it; call "
                "optimizer.consolidate() on all ranks before state_dict()"
            )
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            if isinstance(group.get("view"), MatrixView):  # as plain values, which any loader takes
                group["view"] = group["view"].as_dict()
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, each tensor of a matrix rule in the dtype in which it was saved.

        Options are those that were saved, but for `rank_fraction` and `rank_multiple_of`, to which the right factors
        are cut or extended, and for those that choose among ways to compute the same. Options that are missing, as
        they were not known then, remain as they are. Whole tensors are cut as the parameters are. Tensors that lie
        otherwise are made whole for that, on all ranks together.

        Raises:
            TypeError, ValueError: for a state that does not fit, which changes nothing; they name the entry.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        owner = type(self).__name__
        self.param_groups, loaded = fit_state(state_dict, self.param_groups, self._layouts, owner)
        self.state.clear()
        self.state.update(loaded)
        self._begin_anew()
        self._unconsolidated = False
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        if self._replicas is not None:
            raise TypeError(
                f"{type(self).__name__}: cannot be copied or pickled with replicas=..., as process groups cannot; "
                "save state_dict() and load it into a new optimizer"
            )
        return {
            **super().__getstate__(),
            "nonfinite": self.nonfinite,
            "sync_gradients": self.sync_gradients,
            "_skipped": self._skipped,
            "_unconsolidated": self._unconsolidated,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._replicas = None
        self._begin_anew()

    def members(self) -> list[Member]:
        """Return the parameters of which this rank holds a part, with gradients and layouts as they are now."""
        return self._members(self.param_groups)

    def _prepare_state(
        self, sets: list[list[Work]], everything: Iterable[Member], gates: Mapping[torch.device, Tensor]
    ) -> None:
        """Make the state of parameters that have none yet, and count their steps where a rule asks for that."""
        if self._prepared[0] is not sets or self._prepared[1] != len(self.state):
            for together in sets:
                for work in together:
                    make_states(work, self.state)
            for member in everything:
                if member.grad is not None and not self.state[member.param]:  # this rank has none of its matrices
                    self.state[member.param].update(member.new_state())
            self._prepared = sets, len(self.state)
        for member in everything:
            if member.grad is not None and member.rule.counts(member.group):
                state = self.state[member.param]
                state.setdefault("step", torch.zeros(()))  # where the group did not ask for it before
                gate = gates.get(member.grad.device)
                if gate is not None:
                    state["step"] = state["step"].to(gate.device)
                state["step"] += 1 if gate is None else gate

    def _refuse_swapped(self, everything: Iterable[Member]) -> None:
        """Raise a RuntimeError if parameters have been replaced whose state would be lost."""
        for member in everything:
            before = self._named.get(member.name, member.param)
            if before is member.param or not self.state.get(before):
                continue
            raise RuntimeError(
                f"{type(self).__name__}: parameter {member.name!r}: has taken the place of another one that has state; "
                "give the optimizer the parameters that are trained before its first step, or load a state_dict"
            )

    def _capture(self, everything: list[Member]) -> Capture:
        """Return what must still hold at the end of a step that is being captured. Raise for what does not hold now."""
        warm, owner = self._skipped is not None, type(self).__name__
        return Capture(self.param_groups, self.nonfinite, everything, self.state, warm=warm, owner=owner)

    def _agree(self, everything: list[Member]) -> tuple[Agreement, bool]:
        """Return what the ranks must agree on, and whether that is new."""
        is_new = False
        if self._agreement is None or everything is not self._seen:
            key = [id(member.layout) for member in everything]
            is_new = self._agreement is None or self._agreement[0] != key
            if is_new:
                self._agreement = key, Agreement(everything, type(self).__name__)
        assert self._agreement is not None
        return self._agreement[1], is_new

    def _gates(self, everything: list[Member], agreement: Agreement, scale: LossScale) -> dict[torch.device, Tensor]:
        """Return for each device a tensor that is 1 if all gradients are finite, else 0."""
        if not everything:
            return {}
        devices = {local(member.param).device for member in everything}
        finite = all_finite(everything)
        # What the scaler has seen may have changed since, by clipping or where partial sums have been added up.
        allowed = scale.allows(min(devices, key=str) if finite is None else finite.device)
        finite = agreement.all(everything, allowed if finite is None else finite & allowed)
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=finite.device)
        self._skipped += ~finite
        return {device: finite.to(device, torch.float32) for device in devices}

    def _raise_unless_finite(self, bad: list[str]) -> None:
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise FloatingPointError(
                f"{type(self).__name__}: the gradient of {', '.join(map(repr, bad[:3]))}{more} has infinities or "
                'NaNs; weights and state are as before (nonfinite="skip" leaves such steps out)'
            )


def _rule(algorithm: object, label: str) -> Rule:
    if algorithm not in RULES:
        allowed = ", ".join(map(repr, sorted(RULES)))
        raise ValueError(f"{label}: algorithm should be one of {allowed}, but is {algorithm!r}")
    return RULES[cast(str, algorithm)]


def _view(value: MatrixView | Mapping[str, Any], label: str) -> MatrixView:
    try:
        return MatrixView.of(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: view: {error}") from error


def _separate_names(group: dict[str, Any], label: str) -> None:
    """Turn the group's (name, tensor) pairs into "params" and "param_names"."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError(f"{label}: params should have an order, but is a set; give a list")
    params = [params] if isinstance(params, Tensor) else list(params)
    if not params:
        raise ValueError(f"{label}: params should hold at least one parameter, but is empty")
    named = [isinstance(p, tuple) for p in params]
    if any(named):
        if not all(named):
            raise ValueError(f"{label}: either all of params or none should be (name, tensor) pairs")
        group["param_names"], params = ([pair[i] for pair in params] for i in (0, 1))
    if len(group.get("param_names", params)) != len(params):
        raise ValueError(
            f"{label}: param_names should name each of {len(params)} params, but has {len(group['param_names'])}"
        )
    group["params"] = params


def _into(target: Tensor, step: Step[Tensor]) -> Step[None]:
    target.copy_((yield from step))
