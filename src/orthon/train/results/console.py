"""The console of a command."""

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that shows words as they are: `[b]` in the name of a file is no markup, and `:x:` no picture."""
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)
