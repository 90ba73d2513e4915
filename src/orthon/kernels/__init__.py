"""Products that Triton can fuse with what comes before or after them, beside their torch form."""

from orthon.kernels.add_and_multiply import add_, add_and_multiply_
from orthon.kernels.dispatch import CROSSOVERS, Crossover, use
from orthon.kernels.subtract_product import subtract_product_
from orthon.kernels.symmetric_product import symmetric_product

__all__ = ["CROSSOVERS", "Crossover", "add_", "add_and_multiply_", "subtract_product_", "symmetric_product", "use"]
