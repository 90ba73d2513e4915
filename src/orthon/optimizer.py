"""The torch.optim.Optimizer: param groups, state, batches, step."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orthon.algorithms import RULES, Rule
from orthon.batch import Batch
from orthon.names import parameter_names
from orthon.options import choice
from orthon.routing import param_groups

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]

# What a param group may hold beside the options of its rule. Schedulers look for the last one.
_GROUP_KEYS = {"params", "param_names", "name", "reason", "algorithm", "initial_lr"}

# One batch holds at most this many bytes of gradients, or a single parameter: a step's temporaries grow with it.
_BATCH_BYTES = 64 << 20

_NONFINITE = choice("raise", "skip")


class MixedOptimizer(torch.optim.Optimizer):
    """An optimizer whose param groups each name the algorithm that updates them.

    It keeps torch's contract: schedulers, closures, hooks, `state_dict` and `load_state_dict`. A parameter
    without a gradient is skipped.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options.
        algorithm: of the groups that name none.
        nonfinite: what to do at a gradient with an infinity or a NaN, before anything is changed.
            "raise": a FloatingPointError that names the parameters; costs a synchronization on a GPU.
            "skip": decide on the device, leave all weights and state as they are, and count.
        options: values for the groups that do not set them, each where the group's algorithm has it.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
    """

    def __init__(self, params: Params, *, algorithm: str, nonfinite: str, options: Mapping[str, Any]) -> None:
        _NONFINITE.check("nonfinite", nonfinite, type(self).__name__)
        self.nonfinite = nonfinite
        self._skipped: Tensor | None = None
        for name, value in options.items():
            known = (rule.options[name] for rule in (RULES[algorithm], *RULES.values()) if name in rule.options)
            next(known).check(name, value, type(self).__name__)
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: params should be an iterable of tensors, but is one tensor")
        super().__init__(cast(Any, params), {"algorithm": algorithm, **options})

    @property
    def skipped_steps(self) -> int:
        """How many steps `nonfinite="skip"` has left out; asking synchronizes with the device."""
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
            if isinstance(param, DTensor):
                raise NotImplementedError(
                    f"{where}: is a DTensor with placements {param.placements}; this version updates tensors "
                    "of one process, so train without fully_shard and parallelize_module"
                )
            rule.check_parameter(param, where)

        super().add_param_group(group)
        for key in self.defaults.keys() - rule.options.keys() - {"algorithm"}:
            group.pop(key, None)  # torch fills in every default, also those that are another algorithm's

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

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
        gates = self._gates(self._gradients())
        for group, batch in self._batches():
            gate = gates.get(batch.weights[0].device)
            for _ in RULES[group["algorithm"]].update(_gated(batch, gate), group):
                pass
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, each tensor in the dtype in which it was saved.

        Raises:
            ValueError: for a state of other algorithms, or with entries missing, unknown or of another shape.
        """
        self._check_state(state_dict)
        super().load_state_dict(state_dict)
        # torch casts floating state to the dtype of the parameter, and shares what needs no cast with the caller.
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, param in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                self.state[param][key] = value.detach().to(self.state[param][key].device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "nonfinite": self.nonfinite, "_skipped": self._skipped}

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the gradient of every parameter that has one."""
        for index, group in enumerate(self.param_groups):
            for name, param in zip(parameter_names(group, index), group["params"], strict=True):
                if param.grad is not None:
                    yield name, param.grad

    def _batches(self) -> Iterator[tuple[dict[str, Any], Batch]]:
        """Yield the parameters that have gradients, with their state, in batches for the rules."""
        for index, group in enumerate(self.param_groups):
            rule = RULES[group["algorithm"]]
            alike: defaultdict[tuple[Any, ...], list[tuple[str, Tensor]]] = defaultdict(list)
            for name, param in zip(parameter_names(group, index), group["params"], strict=True):
                if param.grad is None:
                    continue
                if not self.state[param]:
                    self.state[param].update(rule.new_state(name, param, group))
                shape = tuple(param.shape) if rule.for_matrices else ()
                alike[shape, param.dtype, param.grad.dtype, param.device].append((name, param))
            for (shape, *_), members in alike.items():
                size = _BATCH_BYTES // max(1, math.prod(shape) * members[0][1].element_size())
                size = max(1, size) if rule.for_matrices else len(members)
                for start in range(0, len(members), size):
                    names, params = zip(*members[start : start + size], strict=True)
                    grads = [cast(Tensor, p.grad) for p in params]
                    yield group, Batch(list(names), list(params), grads, [self.state[p] for p in params])

    def _gates(self, gradients: Iterable[tuple[str, Tensor]]) -> dict[torch.device, Tensor]:
        """Return for each device a tensor that is 1 if all gradients are finite, else 0; none if that is known.

        Raises:
            FloatingPointError: at a gradient that is not finite, with nonfinite="raise".
            TypeError: at a sparse gradient.
        """
        named = list(gradients)
        for name, grad in named:
            if grad.layout != torch.strided:
                raise TypeError(
                    f"{type(self).__name__}: parameter {name!r}: its gradient should be dense, but is {grad.layout}; "
                    "build the layer with sparse=False"
                )
        if not named:
            return {}
        norms = torch._foreach_norm([grad for _, grad in named], math.inf if self.nonfinite == "skip" else 2.0)
        first = norms[0].device
        if self.nonfinite == "raise":
            # The Euclidean norm takes one quick pass. It may overflow, so that a closer look decides.
            if not torch.stack([norm.to(first, torch.float32) for norm in norms]).isfinite().all():
                self._raise_if_nonfinite(named)
            return {}
        finite = torch.stack([norm.isfinite().to(first) for norm in norms]).all()
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=first)
        self._skipped += ~finite
        return {device: finite.to(device, torch.float32) for device in {norm.device for norm in norms}}

    def _raise_if_nonfinite(self, gradients: Iterable[tuple[str, Tensor]]) -> None:
        bad = [name for name, grad in gradients if not grad.isfinite().all()]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise FloatingPointError(
                f"{type(self).__name__}: the gradient of {', '.join(map(repr, bad[:3]))}{more} has infinities or "
                'NaNs; weights and state are as before (nonfinite="skip" leaves such steps out)'
            )

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Raise a ValueError unless the state fits these groups; their number and sizes are left to torch."""
        for index, (saved, group) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=False)):
            where = f"{type(self).__name__}: loading the state of "
            if saved.get("algorithm") != group["algorithm"]:
                raise ValueError(
                    f"{where}param group {group.get('name', index)!r}: algorithm should be {group['algorithm']!r}, "
                    f"but is {saved.get('algorithm')!r}"
                )
            rule = RULES[group["algorithm"]]
            names = parameter_names(group, index)
            for i, name, param in zip(saved["params"], names, group["params"], strict=False):
                given = state_dict["state"].get(i)
                if not given:
                    continue
                expected = rule.new_state(name, param.to("meta"), {**group, **saved})
                if given.keys() != expected.keys():
                    raise ValueError(
                        f"{where}parameter {name!r}: entries should be {sorted(expected)}, but are {sorted(given)}"
                    )
                for key, value in expected.items():
                    if given[key].shape != value.shape:
                        raise ValueError(
                            f"{where}parameter {name!r}: shape of {key!r} should be {tuple(value.shape)}, "
                            f"but is {tuple(given[key].shape)}"
                        )


class Dion(MixedOptimizer):
    """Dion: orthonormal updates of low rank (arXiv 2504.05295), with AdamW or Lion for what is no matrix.

    For a weight X (m × n) with gradient G, momentum M (m × n) and right factor Q (n × r)::

        M ← M + G
        P ← orthonormalize(M Q)
        R ← Mᵀ P
        M ← M − (1 − momentum)·P Rᵀ
        Q ← R / column_norms(R)
        X ← (1 − lr·weight_decay)·X − lr·scale·P Qᵀ

    A model has more than matrices: `Dion.for_model(model)` sends each parameter to the right algorithm. A
    group chooses its algorithm by name: {"params": ..., "algorithm": "adamw"}.

    Args:
        params: tensors, (name, tensor) pairs, or dictionaries with "params" and options. Names make errors
            readable, and the start of Q independent of the order of the parameters.
        lr: learning rate of the groups that set none; a number or a one-element tensor.
        rank_fraction: r over min(m, n), in (0, 1]. The work is proportional to it. To the same loss of a small
            GPT the authors needed 1.05–1.15 times the steps of full rank at 1/2, 1.3–1.5 times at 1/4 and
            1.7–3.8 times at 1/16, the more the larger the batch.
        rank_multiple_of: r is rounded up to a multiple of this, and to at most min(m, n).
        momentum: share of the update's low-rank part that stays in M, in [0, 1).
        right_factor: "normalize" divides the columns of R by their norms (the paper); "orthonormalize" takes
            the orthonormal factor of its QR decomposition (arXiv 2605.16341), which makes the operator norm
            of the update 1 instead of up to √r.
        orthonormal_side: which side of the matrix P belongs to. "short" costs far less work (at 4:1 and rank
            1/4 on a CPU, "long" added half of the step), and "long" less state: Q has min(m, n)·r instead of
            max(m, n)·r numbers. In a small model "short" was 0.01–0.02 better in loss at rank 1/16, equal at
            1/4, and 0.01 worse at full rank. A square matrix has P on the output side either way.
        power_iterations: how often P and Q are refined in one step, at least once.
        betas: of AdamW and Lion.
        eps: of AdamW.
        weight_decay: decoupled: every step multiplies the weight by 1 − lr·weight_decay.
        lr_scale: factor of lr by the shape of the matrix, see `orthon.lr_scale.lr_factor`:
            "spectral_unclamped", "original", "match_rms_adamw" or "none".
        state_dtype: of M and Q; None for the weight's own. The large products run in it (in float32 for
            float16), norms and factorizations in float32 or better.
        maximize: ascend instead of descend.
        nonfinite: what happens at a gradient with infinities or NaNs: "raise" or "skip".
        seed: of the start of Q, which is a function of it, the parameter's name, and row and column.

    Raises:
        TypeError, ValueError: for a parameter, an option or a group that cannot be used; they name it.
        FloatingPointError: from `step`, with nonfinite="raise".
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.01,
        *,
        rank_fraction: float = 0.25,
        rank_multiple_of: int = 1,
        momentum: float = 0.95,
        right_factor: str = "normalize",
        orthonormal_side: str = "short",
        power_iterations: int = 1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        lr_scale: str = "spectral_unclamped",
        state_dtype: torch.dtype | None = None,
        maximize: bool = False,
        nonfinite: str = "raise",
        seed: int = 0,
    ) -> None:
        options = {
            "lr": lr,
            "rank_fraction": rank_fraction,
            "rank_multiple_of": rank_multiple_of,
            "momentum": momentum,
            "right_factor": right_factor,
            "orthonormal_side": orthonormal_side,
            "power_iterations": power_iterations,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "lr_scale": lr_scale,
            "state_dtype": state_dtype,
            "maximize": maximize,
            "seed": seed,
        }
        super().__init__(params, algorithm="dion", nonfinite=nonfinite, options=options)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        lr: float | Tensor = 0.01,
        *,
        scalar_algorithm: str = "adamw",
        scalar_lr: float | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> "Dion":
        """Return an optimizer for all parameters of a model: Dion for its hidden matrices, another for the rest.

        Args:
            model: any module; `orthon.param_groups` decides by module types and names.
            lr: learning rate of the hidden matrices.
            scalar_algorithm: "adamw" or "lion", for what is no hidden matrix.
            scalar_lr: its learning rate; None for the algorithm's usual one.
            overrides: options by name pattern, see `orthon.param_groups`.
            options: of the constructor.
        """
        groups = param_groups(
            model,
            "dion",
            scalar_algorithm,
            lr=lr,
            scalar_lr=scalar_lr,
            overrides=overrides,
            weight_decay=options.get("weight_decay"),
        )
        return cls(groups, lr, **options)


def _rule(algorithm: object, label: str) -> Rule:
    if algorithm not in RULES:
        allowed = ", ".join(map(repr, sorted(RULES)))
        raise ValueError(f"{label}: algorithm should be one of {allowed}, but is {algorithm!r}")
    return RULES[cast(str, algorithm)]


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


def _gated(batch: Batch, gate: Tensor | None) -> Batch:
    """Return the batch with the gate, and with zeros for gradients that it leaves out."""
    if gate is None:
        return batch
    grads = [torch.where(gate > 0, grad, 0) for grad in batch.grads]
    return replace(batch, grads=grads, gate=gate)
