"""The name that somebody meant who wrote another one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The one of the names that a word is most like, or None if it is like none.

    Dashes and underscores are the same here, and so are capitals and small letters. A word without its group, such as
    `lr` or `--lr`, finds the name in a group that ends in it.

    Args:
        word: As it was written.
        names: Those that there are: settings with dots, options, commands or values.
    """
    written = _plain(word)
    by_form: dict[str, str] = {}
    for name in names:
        by_form.setdefault(_plain(name), name)
    if written in by_form:
        return by_form[written]
    ends = {form: name for form, name in by_form.items() if _last(form) == _last(written)}
    close = get_close_matches(written, ends or by_form, n=1, cutoff=0.0 if ends else 0.6)
    if not close:  # a typing error in a word without its group
        by_end = {_last(form): form for form in by_form}
        close = [by_end[end] for end in get_close_matches(_last(written), by_end, n=1, cutoff=0.75)]
    return by_form[close[0]] if close else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown word: "; did you mean 'dion'?", or nothing."""
    found = nearest(word, names)
    return f"; did you mean {found!r}?" if found is not None else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")


def _last(form: str) -> str:
    return form.rpartition(".")[2]
