"""The counter-based generator."""

import torch

from orthon.linalg import random_normal


def matrix(key: str = "key", m: int = 400, n: int = 300, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return random_normal(key, torch.arange(m), torch.arange(n), dtype=dtype)


def test_any_part_of_a_random_matrix_has_the_values_of_the_whole() -> None:
    whole = matrix()
    rows, cols = torch.tensor([7, 3, 399, 0]), torch.arange(5, 300, 7)
    assert torch.equal(random_normal("key", rows, cols, dtype=torch.float64), whole[rows][:, cols])
    assert random_normal("key", rows[:0], cols, dtype=torch.float64).shape == (0, len(cols))


def test_random_values_never_change() -> None:
    """Checkpoints and papers rely on them: a change is a change of every run."""
    expected = torch.tensor(EXPECTED, dtype=torch.float64)
    torch.testing.assert_close(matrix("weight", 2, 3), expected, rtol=0, atol=1e-12)


EXPECTED = [
    [0.6075233752169925, 0.3907527342664651, -0.14853096831772297],
    [-0.929137850921329, 2.0307513422770813, -0.022702509214399293],
]


def test_random_values_are_nearly_normal_and_independent() -> None:
    X = matrix()
    assert abs(X.mean()) < 0.01
    assert abs(X.std() - 1) < 0.01
    assert abs((X**3).mean()) < 0.03
    assert abs((X**4).mean() - 2.7) < 0.05  # of the sum of four uniform numbers; 3 for a normal one
    for other in (matrix("other"), X.roll(1, 0), X.roll(1, 1)):
        assert abs((X * other).mean()) < 0.015
    # A random matrix has no large singular value beside √m + √n.
    assert torch.linalg.matrix_norm(X, ord=2) < 1.05 * (400**0.5 + 300**0.5)


def test_random_values_in_other_dtypes_are_rounded() -> None:
    torch.testing.assert_close(matrix(dtype=torch.float32).double(), matrix(), rtol=2e-7, atol=0)
    assert torch.equal(matrix(dtype=torch.bfloat16), matrix(dtype=torch.float32).bfloat16())


def test_the_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    matrix()
    assert torch.equal(torch.get_rng_state(), before)
