"""What an update rule is, and the list of all rules."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from orthon.algorithms.batch import Batch
from orthon.algorithms.options import SCHEDULER_KEYS, Group, Option
from orthon.algorithms.state import Counter, Entries, Entry
from orthon.algorithms.work import COMMON_OPTIONS, MATRIX_OPTIONS, Work
from orthon.linalg.precision import FLOAT_DTYPES
from orthon.sharding import Step
from orthon.sharding.matrix_view import MatrixView


@dataclass(frozen=True)
class Rule:
    """An update rule. `register_rule` makes it known, so that param groups can choose it by its name.

    Attributes:
        name: by which a param group chooses it.
        update: makes one step on a batch, in place. A generator where ranks may have to talk, as it pauses while they
            do; else it may be a plain function that returns None.
        entries: what it keeps of each parameter, or of each of its matrices: an `Entry` or a `Counter` by key; or a
            function that returns that for a shape and a param group.
        work: the kind of work that it does.
        options: what a param group may set for it. Those of its kind of work are added; of one name, the rule's own
            counts.
    """

    name: str
    update: Callable[[Batch], Step[None] | None]
    entries: Entries | Callable[[tuple[int, ...], Group], Entries]
    work: Work
    options: Mapping[str, Option]

    def __post_init__(self) -> None:
        """Add the options of the kind of work. Raise a TypeError for parts that are of another kind."""
        where = f"Rule {self.name!r}"
        if not callable(self.update):
            raise TypeError(f"{where}: update should be a function of a batch, but is {self.update!r}")
        if not isinstance(self.work, Work):
            raise TypeError(
                f"{where}: work should be one of Elementwise(), LowRank(), WholeMatrix(), SelectedRows(), or a Work of "
                f"your own, but is {self.work!r}"
            )
        if not isinstance(self.entries, Mapping) and not callable(self.entries):
            raise TypeError(
                f"{where}: entries should be a dict or a function that returns one, but is {self.entries!r}"
            )
        if not isinstance(self.options, Mapping):
            raise TypeError(f"{where}: options should be a dict, but is {self.options!r}")
        object.__setattr__(self, "options", {**self.work.options, **self.options})

    def keeps(self, shape: tuple[int, ...], options: Group) -> Entries:
        """Return what the rule keeps of a parameter, or a matrix, of this shape."""
        return self.entries(shape, options) if callable(self.entries) else self.entries

    def check_parameter(self, param: Tensor, options: Group, where: str) -> None:
        """Raise a TypeError or ValueError if this rule cannot update `param`, which `where` names."""
        if is_lazy(param):
            raise ValueError(
                f"{where}: should have a shape, but is of a lazy module that has not seen any data yet; let the model "
                "run once before its optimizer is made"
            )
        if param.layout != torch.strided:
            raise TypeError(f"{where}: should be a dense tensor, but is {param.layout}")
        if param.dtype not in FLOAT_DTYPES:
            allowed = ", ".join(map(str, FLOAT_DTYPES))
            raise TypeError(f"{where}: dtype should be one of {allowed}, but is {param.dtype}")
        if not self.work.takes_matrices:
            return
        if options["view"] is None and not is_plain_matrix(param):
            raise ValueError(
                f"{where}: {self.name} updates matrices, so the shape should be (rows, columns), both at least 1, "
                f"but is {tuple(param.shape)}; tell by view=MatrixView(...) in its group how it is read as matrices, "
                "give it to another algorithm, such as 'adamw', by others='adamw' for all that are no matrices, or let "
                "orthon.param_groups(model) choose"
            )
        if options["view"] is not None:
            try:
                MatrixView.of(options["view"]).read(tuple(param.shape))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


def is_plain_matrix(param: Tensor) -> bool:
    """Return whether a parameter is one matrix as it is."""
    return param.ndim == 2 and param.numel() > 0


RULES: MutableMapping[str, Rule] = {}
"""All rules by name. To be read; `register_rule` adds to it."""

ALIASES = {"nordion2": "dion3"}
"""Second names of rules, for `orthon.create`."""


def options_of(group: Group) -> Mapping[str, Option]:
    """Return what a param group may set: the options of its rule, and of that for its other parameters, if it has one.

    Where both have an option, it is that of the group's own rule.
    """
    options = RULES[group["algorithm"]].options
    others = group.get("others")
    return options if others is None else {**RULES[others].options, **options}


def rule_for(param: Tensor, group: Group) -> Rule:
    """Return the rule that updates a parameter of a param group: that for the others if it is no matrix."""
    return RULES[str(rule_name(param, group))]


def rule_name(param: Tensor, group: Group) -> str | None:
    """Return the name of the rule that updates a parameter, as the group has it; None if it has none."""
    others: str | None = group.get("others")
    is_other = others is not None and group.get("view") is None and not is_plain_matrix(param)
    return others if is_other else group.get("algorithm")


def register_rule(rule: Rule) -> Rule:
    """Make a rule known by its name, for `{"params": ..., "algorithm": name}` and `MixedOptimizer(algorithm=name)`.

    A rule may be registered again by the code that registered it before, as when a cell of a notebook runs twice.

    Returns:
        The rule.

    Raises:
        TypeError, ValueError: for a rule whose parts do not fit together, or a name that another one has.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"register_rule: rule should be a Rule, but is a {type(rule).__name__}")
    where = f"register_rule: rule {rule.name!r}"
    if not isinstance(rule.name, str) or not rule.name.isidentifier():
        raise ValueError(f"{where}: name should be a Python identifier, such as 'adamuon'")
    if (known_as := ALIASES.get(rule.name.lower())) is not None:
        raise ValueError(f"{where}: name is taken, as a second name of {known_as}; choose another one")
    known = RULES.get(rule.name)
    if known is not None and _origin(known) != _origin(rule):
        raise ValueError(f"{where}: name is taken by {_origin(known)}; choose another one")
    _check_work(rule.work, where)
    _check_options(rule, where)
    _check_entries(rule, where)
    RULES[rule.name] = rule
    return rule


def _origin(rule: Rule) -> str:
    made = rule.update if hasattr(rule.update, "__qualname__") else type(rule.update)  # a callable object
    return f"{made.__module__}.{made.__qualname__}"


# What a kind of work may say only of matrices. Without `routes` there is no `effort` either.
_OF_MATRICES = (
    "update_rank", "has_tail", "routes", "copies_divide_matrices", "owned_bytes", "compresses", "check_layout",
    "polar_dtype",
)  # fmt: skip


def _check_work(work: Work, where: str) -> None:
    """Raise a ValueError for a kind of work that gives one of two answers that belong together."""
    kind = type(work)
    for one, other in (("routes", "effort"), ("effort", "routes")):
        if getattr(kind, one) is not getattr(Work, one) and getattr(kind, other) is getattr(Work, other):
            raise ValueError(f"{where}: {kind.__name__} has {one} without {other}; both belong together")
    if not work.takes_matrices:
        for answer in _OF_MATRICES:
            if getattr(kind, answer) is not getattr(Work, answer):
                raise ValueError(f"{where}: {kind.__name__} has {answer}, which is for work that takes matrices alone")


def _check_options(rule: Rule, where: str) -> None:
    for name, option in rule.options.items():
        if name == "lr_scale":
            raise ValueError(f"{where}: the option 'lr_scale' is called 'adjust_lr_fn' now, as in torch.optim.Muon")
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise ValueError(
                f"{where}: an option should have a name that is a Python identifier, and none of "
                f"{', '.join(sorted(_RESERVED))}, but has {name!r}"
            )
        if not isinstance(option, Option):
            raise TypeError(f"{where}: option {name!r} should be an Option, such as number(...), but is {option!r}")
        option.check(name, option.default, f"{where}: default")
        if name in rule.work.options:  # may have another default, but is still what the kind of work reads
            rule.work.options[name].check(name, option.default, f"{where}: default")
    needed = MATRIX_OPTIONS if rule.work.takes_matrices else COMMON_OPTIONS
    missing = [name for name in needed if name not in rule.options]
    if missing:
        raise ValueError(
            f"{where}: {type(rule.work).__name__} lacks the options {', '.join(map(repr, missing))}, which all rules "
            "of its kind have; add those of the class that it comes from"
        )


# What a param group or the optimizer means by these names.
_RESERVED = SCHEDULER_KEYS | {
    "params", "param_names", "seed_names", "name", "reason", "algorithm", "nonfinite", "replicas", "sync_gradients",
    "machine", "wave_memory", "others",
}  # fmt: skip


def _check_entries(rule: Rule, where: str) -> None:
    """Raise a TypeError or ValueError for a state that its kind of work cannot keep."""
    options = {name: option.default for name, option in rule.options.items()}
    entries = rule.keeps((6, 4), options)
    if not isinstance(entries, Mapping):
        raise TypeError(f"{where}: entries should return a dict, but returns {entries!r}")
    for key, entry in entries.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f"{where}: the key of an entry should be a Python identifier, but is {key!r}")
        if not isinstance(entry, Entry | Counter):
            raise TypeError(f"{where}: the entry {key!r} should be an Entry or a Counter, but is {entry!r}")
        if isinstance(entry, Entry) and entry.side is not None and not rule.work.takes_matrices:
            raise ValueError(f"{where}: the entry {key!r} lies along a side, but {rule.name} takes no matrices")
    for key in rule.work.needs:
        if key not in entries:
            raise ValueError(f"{where}: {type(rule.work).__name__} works on the state {key!r}, which entries() lacks")
