"""The name that somebody meant who wrote another one."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the one of the names that a word is most like, or None if it is like none.

    Dashes and underscores are the same here, and so are capitals and small letters. A word without its group, such as
    `lr` or `--lr`, finds the name in a group that ends in it.

    Args:
        word: as it was written.
        names: those that there are: settings with dots, options, commands or values.
    """
    written = _plain(word)
    by_form: dict[str, str] = {}
    for name in names:
        by_form.setdefault(_plain(name), name)
    if written in by_form:
        return by_form[written]
    if found := _abbreviated(written, list(by_form)):
        return by_form[found]
    ends = {form: name for form, name in by_form.items() if _last(form) == _last(written)}
    close = get_close_matches(written, ends or by_form, n=1, cutoff=0.0 if ends else 0.6)
    if not close:  # a typing error in a word without its group
        by_end = {_last(form): form for form in by_form}
        close = [by_end[end] for end in get_close_matches(_last(written), by_end, n=1, cutoff=0.75)]
    return by_form[close[0]] if close else None


def _abbreviated(written: str, forms: list[str]) -> str | None:
    """Return a name that begins with what was written; one of the same words in another order; or one that has its
    initials. These are nearer than names that have some equal letters.
    """
    tests: tuple[Callable[[str, str], bool], ...] = (
        lambda word, form: len(word) > 1 and form.startswith(word),
        lambda word, form: word.replace("_", "") == form.replace("_", ""),
        lambda word, form: sorted(re.split("[._]", word)) == sorted(re.split("[._]", form)),
        lambda word, form: "_" in word and "".join(part[:1] for part in word.split("_")) == form,
    )
    last = _last(written)
    for test in tests:
        if found := [form for form in forms if test(written, form)]:
            return min(found, key=len)
        if found := [form for form in forms if len(last) > 1 and test(last, _last(form))]:
            return get_close_matches(written, found, n=1, cutoff=0.0)[0]
    return None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: "; did you mean 'dion'?", or nothing."""
    found = nearest(word, names)
    return f"; did you mean {found!r}?" if found is not None else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")


def _last(form: str) -> str:
    return form.rpartition(".")[2]
