"""Linear algebra on batches of matrices whose rows may be spread over ranks."""

from orthon.linalg.arithmetic import PRECISIONS, check_precision, default_precision
from orthon.linalg.columns import Columns, overwrite_where_, unit_columns, unit_columns_on_shards
from orthon.linalg.in_cache import IN_CACHE, in_cache
from orthon.linalg.memory import orthonormalizing_bytes, polar_bytes
from orthon.linalg.norms import powers_of_two
from orthon.linalg.orthonormalize import orthonormalize, orthonormalize_on_shards
from orthon.linalg.polar import polar, polar_dtype, polar_flops, polar_on_shards, shards_cost
from orthon.linalg.polar_columns import polar_columns, polar_columns_flops, polar_columns_on_shards
from orthon.linalg.precision import compute_dtype, factor_dtype, rounding_noise
from orthon.linalg.random import random_normal
from orthon.linalg.row_ranks import Computation, RowRanks

__all__ = [
    "IN_CACHE",
    "PRECISIONS",
    "Columns",
    "Computation",
    "RowRanks",
    "check_precision",
    "compute_dtype",
    "default_precision",
    "factor_dtype",
    "in_cache",
    "orthonormalize",
    "orthonormalize_on_shards",
    "orthonormalizing_bytes",
    "overwrite_where_",
    "polar",
    "polar_bytes",
    "polar_columns",
    "polar_columns_flops",
    "polar_columns_on_shards",
    "polar_dtype",
    "polar_flops",
    "polar_on_shards",
    "powers_of_two",
    "random_normal",
    "rounding_noise",
    "shards_cost",
    "unit_columns",
    "unit_columns_on_shards",
]
