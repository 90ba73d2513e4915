"""The tables of docs/how_to/many_ranks.md: made anew, and compared with the page."""

from scripts.layout_table import END, LINES, OTHERS, PAGE, START, held_by, table

from orthon.testing.layouts import LAYOUTS


def test_the_page_shows_what_is_counted() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]
    assert shown == f"{table()}\n{held_by()}", "run python -m scripts.layout_table"


def test_each_layout_of_the_tests_is_in_one_line() -> None:
    named = [name for line in (*LINES, *OTHERS) for name in line.tests]
    assert sorted(named) == sorted(LAYOUTS)
