"""The worker processes, shared by all tests that need ranks."""

from collections.abc import Iterator

import pytest

from tests.ranks.pool import Pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool
