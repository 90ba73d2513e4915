"""The answers of a set as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from experiments.answers import Answer, answers, pair_difference
from experiments.entries import Experiment, Setting
from experiments.intervals import MIXED
from experiments.results import Found

HOW = "../experiments.md"

Known: TypeAlias = Mapping[str, Sequence[Answer]]  # by setting


def page(experiment: Experiment, found: Found, pictures: Sequence[str]) -> str:
    """Return the tables of a set, one for each setting of which something is known, and its pictures.

    Args:
        experiment: the set.
        found: its data.
        pictures: names of files beside the page.
    """
    known = {setting.name: answers(experiment, setting, found) for setting in experiment.settings}
    known = {name: given for name, given in known.items() if given}
    parts = [
        f"# {experiment.question}",
        f"Made by `python -m experiments.report {experiment.name}` from {_of_all_runs(found)}. "
        f"[How runs are made and compared]({HOW}#a-run).",
        *(f"![{experiment.question}]({picture})" for picture in pictures[:1]),
    ]
    if len(known) > 1:
        parts += _of_all_settings(experiment, known)
    if experiment.pairs:
        parts += _of_pairs(experiment, known)
    for setting in experiment.settings:
        if setting.name in known:
            parts += [
                f"## {setting.name[:1].upper()}{setting.name[1:]}",
                f"{_in_words(setting, known[setting.name])}:",
                _table(experiment, known[setting.name]),
            ]
    parts += [f"![Losses over learning rates]({picture})" for picture in pictures[1:]]
    if any(MIXED in part for part in parts):
        more = f"[what that does]({HOW}#how-they-are-compared)"
        parts.append(f"{MIXED.strip()} Some of these pairs ran on two kinds of processor: {more}.")
    if experiment.published:
        parts.append(f"**Published.** {experiment.published}")
    return "\n\n".join(parts) + "\n"


def _of_all_runs(found: Found) -> str:
    """Return how many runs there are, and where they were made."""
    return f"{len(found)} runs on {' and '.join(sorted({line.processor for line in found.values()}))}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Return a table, in which the first columns, `words` of them, are words and the others numbers."""
    marks = [*["---"] * words, *["--:"] * (len(headings) - words)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows))


def _of_all_settings(experiment: Experiment, known: Known) -> list[str]:
    """Return a row for each optimizer, a column for each setting."""
    names = dict.fromkeys(entry.contender.name for entry in experiment.entries)
    by_name = [{answer.entry.contender.name: answer for answer in given} for given in known.values()]
    if experiment.shown == "lr":
        what = "Best learning rates, fitted where the best one tried has neighbours:"
    else:
        what = f"The held-out loss of {experiment.baseline}, and the differences of the others to it:"

    def text(answer: Answer | None) -> str:
        if answer is None:
            return ""
        if experiment.shown == "lr":
            return f"{answer.fitted_lr or answer.lr:.2g}"
        return str(answer.difference or f"{answer.loss:.3f}")

    rows = ([name, *(text(answers_there.get(name)) for answers_there in by_name)] for name in names)
    return [what, markdown(["optimizer", *known], rows)]


def _of_pairs(experiment: Experiment, known: Known) -> list[str]:
    """Return a row for each pair, a column for each setting."""
    rows = (
        [*pair, *(str(pair_difference(given, pair) or "") for given in known.values())] for pair in experiment.pairs
    )
    return [
        "Differences in pairs, the first one's loss minus the second one's:",
        markdown(["first", "second", *known], rows, words=2),
    ]


def _in_words(setting: Setting, known: Sequence[Answer]) -> str:
    context = known[0].entry.cell(0, 0).shape.context
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
    timed = all(line.where["device"] == "cpu" for answer in known for line in answer.lines.values())
    rows = ([*_row(experiment, answer), *([f"{answer.optimizer_share:.0%}"] * timed)] for answer in known)
    return markdown([*headings, *(["optimizer's time"] * timed)], rows)  # on a GPU many runs share it


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
    return cells
