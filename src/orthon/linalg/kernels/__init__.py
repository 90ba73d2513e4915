"""Products that Triton can fuse with what comes before or after them, beside their torch form."""

from orthon.linalg.kernels.add_and_multiply import add_and_multiply_
from orthon.linalg.kernels.dispatch import CROSSOVERS, Crossover, use
from orthon.linalg.kernels.products import product
from orthon.linalg.kernels.subtract_product import subtract_product_
from orthon.linalg.kernels.sums import SMALL, add_each, mix_each
from orthon.linalg.kernels.symmetric_product import symmetric_product

__all__ = [
    "CROSSOVERS",
    "SMALL",
    "Crossover",
    "add_and_multiply_",
    "add_each",
    "mix_each",
    "product",
    "subtract_product_",
    "symmetric_product",
    "use",
]
