"""Tables of aligned columns, as lines of text."""

from collections.abc import Sequence


def table(header: tuple[str, ...], lines: Sequence[tuple[str, ...]], *, right: set[int]) -> list[str]:
    """Return aligned lines: the header, dashes, and the rest.

    Args:
        header: of the columns. A heading may have several lines.
        lines: below it.
        right: the columns that are aligned to the right.
    """
    headings = [heading.split("\n") for heading in header]
    height = max(map(len, headings))
    above = list(zip(*([""] * (height - len(heading)) + heading for heading in headings), strict=True))
    widths = [max(len(line[i]) for line in [*above, *lines]) for i in range(len(header))]

    def text(cells: tuple[str, ...]) -> str:
        aligned = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(aligned).rstrip()

    return [*map(text, above), "  ".join("─" * width for width in widths), *map(text, lines)]
