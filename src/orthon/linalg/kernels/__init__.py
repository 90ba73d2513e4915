"""Products and sums of matrices, some of which have a Triton kernel beside their torch form.

A Triton kernel is used only where it has been measured to be faster, which so far is nowhere.
"""

from orthon.linalg.kernels.products import (
    SMALL,
    add_and_multiply_,
    add_each,
    lies_by_columns,
    mix_each,
    product,
    subtract_product_,
    symmetric_product,
)

__all__ = [
    "SMALL",
    "add_and_multiply_",
    "add_each",
    "lies_by_columns",
    "mix_each",
    "product",
    "subtract_product_",
    "symmetric_product",
]
