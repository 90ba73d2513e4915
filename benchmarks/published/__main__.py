"""Print the table of published and planned step times, and write it into docs/published.md."""

from pathlib import Path

from benchmarks.published.rows import table

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
START, END = "<!-- table -->\n", "<!-- end of the table -->"


def main() -> None:
    """Replace the table in the page."""
    made = table()
    print(made)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    PAGE.write_text(f"{before}{START}\n{made}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
