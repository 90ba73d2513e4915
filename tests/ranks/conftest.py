"""The worker processes, shared by all tests that need ranks."""

from collections.abc import Iterator

import pytest

from orthon.testing import Pool


@pytest.fixture(scope="package")  # so that they are gone when other tests run
def ranks() -> Iterator[Pool]:
    with Pool(forget=["tests"]) as pool:
        yield pool
