"""The answers of a set as a page of Markdown."""

from collections.abc import Iterable, Sequence

from experiments.answers import Answer, answers
from experiments.entries import Experiment, Setting
from experiments.results import Found


def page(experiment: Experiment, found: Found) -> str:
    """Return the tables of a set, one for each setting of which something is known."""
    parts = [f"**{experiment.question}**", *_tables(experiment, found)]
    if experiment.published:
        parts.append(f"Published: {experiment.published}")
    return "\n\n".join(parts) + "\n"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are numbers."""
    marks = ["---", *["--:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows))


def _tables(experiment: Experiment, found: Found) -> Iterable[str]:
    for setting in experiment.settings:
        known = answers(experiment, setting, found)
        if known:
            yield f"{setting.name}: {_in_words(setting, known)}"
            yield _table(experiment, known)


def _in_words(setting: Setting, known: Sequence[Answer]) -> str:
    context = known[0].entry.cell(0, 0).shape.shape.context
    counts = sorted({len(answer.lines) for answer in known})
    seeds = "1 seed" if counts == [1] else f"{' to '.join(str(count) for count in {counts[0], counts[-1]})} seeds"
    return (
        f"LLaMA {setting.size}{''.join(f', {name} {value}' for name, value in setting.model.items())}, "
        f"{setting.steps} steps of {setting.batch * context} tokens, momentum {setting.momentum:g}, {seeds}"
    )


def _table(experiment: Experiment, known: Sequence[Answer]) -> str:
    headings = ["optimizer", "lr", "fitted lr", "held-out loss", f"to {experiment.baseline}"]
    if experiment.target:
        headings.append(f"steps to {experiment.target}'s loss")
    return markdown([*headings, "optimizer's time"], (_row(experiment, answer) for answer in known))


def _row(experiment: Experiment, answer: Answer) -> list[str]:
    swept = answer.entry.setting.sweeps
    cells = [
        answer.entry.contender.name,
        f"{answer.lr:g}" + (" (at the edge)" if swept and not answer.inside else ""),
        f"{answer.fitted_lr:.2g}" if answer.fitted_lr else "",
        f"{answer.loss:.3f}",
        str(answer.difference or ""),
    ]
    if experiment.target:
        cells.append(f"{answer.steps_to_target:.0f}" if answer.steps_to_target else "")
    return [*cells, f"{answer.optimizer_share:.0%}"]
