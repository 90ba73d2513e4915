"""Tables of aligned columns, as lines of text."""

from collections.abc import Sequence


def table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]], *, right: set[int]) -> list[str]:
    """Return aligned lines: the header, dashes, and the rest. The columns in `right` are aligned to the right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(cells: tuple[str, ...]) -> str:
        aligned = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(aligned).rstrip()

    return [text(header), "  ".join("─" * width for width in widths), *map(text, lines)]
