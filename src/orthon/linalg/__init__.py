"""Linear algebra on batches of matrices whose rows may be spread over ranks."""

from orthon.linalg.arithmetic import PRECISIONS, check_precision, default_precision
from orthon.linalg.in_cache import in_cache
from orthon.linalg.orthonormalize import Columns, orthonormalize, overwrite_where_, unit_columns
from orthon.linalg.polar import polar, polar_dtype, polar_flops, polar_on_shards, shards_cost
from orthon.linalg.precision import compute_dtype, factor_dtype, rounding_noise
from orthon.linalg.random import random_normal

__all__ = [
    "PRECISIONS",
    "Columns",
    "check_precision",
    "compute_dtype",
    "default_precision",
    "factor_dtype",
    "in_cache",
    "orthonormalize",
    "overwrite_where_",
    "polar",
    "polar_dtype",
    "polar_flops",
    "polar_on_shards",
    "random_normal",
    "rounding_noise",
    "shards_cost",
    "unit_columns",
]
