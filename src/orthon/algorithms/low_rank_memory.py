"""About how many bytes work on a low-rank factor of the momentum takes: on every rank, and on the owner of a matrix."""

import torch

from orthon.algorithms.options import Group
from orthon.linalg import compute_dtype, default_precision, factor_dtype, orthonormalizing_bytes
from orthon.sharding import Layout


def temporaries(layout: Layout, options: Group, dtype: torch.dtype, *, r: int, has_tail: bool) -> float:
    """Return the bytes of two pairs of factors in float32; in another dtype also those of as many, and of M.

    Beside a tail there are a pair of factors and R, twice as much in all. Where the weights cannot take the tail
    and the low-rank part one after the other, the whole update is made, of N in its dtype.

    Args:
        layout: of the matrix.
        options: of its group.
        dtype: of the weight.
        r: the rank of the update.
        has_tail: whether it has a tail beside that.
    """
    m, n = layout.largest_shard
    cautious: bool = options["cautious_weight_decay"]
    product_dtype: torch.dtype | None = options["product_dtype"]
    kept: torch.dtype = options["state_dtype"] or dtype
    added = product_dtype or dtype

    a_pair = float((m + n) * r * max(4, dtype.itemsize))
    pairs = (2.05 if dtype.itemsize == 4 else 2.75) + (options["right_factor"] != "normalize")
    product = 2.0 * m * n * added.itemsize if added != dtype else 0.0
    direction = float(m * n * dtype.itemsize) if cautious else 0.0
    most: float = pairs * a_pair + product + direction
    if not has_tail:
        return most
    in_one_sum = dtype.itemsize < 4 or cautious
    copies = (product_dtype not in (None, kept)) + (in_one_sum or added != dtype) + (in_one_sum and added != kept)
    return max(most, 2 * a_pair + float(copies * m * n * added.itemsize))


def owned_bytes(layout: Layout, options: Group, dtype: torch.dtype, *, r: int, side: int, has_tail: bool) -> float:
    """Return the bytes of M, Q and the update on their way back, or of the work on them if that takes more.

    While an owner sends the three, it receives its shards of those of others, which are as many numbers. It has P
    and Q to the end.

    Args:
        layout: of the matrix.
        options: of its group.
        dtype: of the weight.
        r: the rank of the update.
        side: to which P belongs: 0 for the rows of the weight, 1 for its columns.
        has_tail: whether the update has a tail.
    """
    numbers, p, q = layout.shape[0] * layout.shape[1], layout.shape[side], layout.shape[1 - side]
    kept, right_factor = options["state_dtype"] or dtype, options["right_factor"]
    computed = options["product_dtype"] or compute_dtype(kept)
    wide, sent, added = factor_dtype(computed), torch.promote_types(computed, dtype), options["product_dtype"] or dtype
    of_q = wide if right_factor == "normalize" else sent
    feeds_back = options["residual_momentum"] is not None

    def made(numbers: int, of: torch.dtype, given: torch.dtype) -> int:
        """Return the bytes of a copy in a dtype, of which there is none if that is the given one."""
        return 0 if of == given else numbers * of.itemsize

    def orthonormalizing(rows: int) -> float:
        precision = options["precision"] or default_precision(computed, layout.device)
        return orthonormalizing_bytes(rows, r, precision=precision, dtype=computed)

    brought = numbers * kept.itemsize + q * r * kept.itemsize + made(numbers, computed, kept)  # M, Q, M for products

    # While P is found, and then Q.
    P_and_R = p * r * wide.itemsize + made(p * r, sent, wide) + made(q * r, computed, wide)
    if right_factor == "normalize":
        finding_Q: float = 2 * q * r * wide.itemsize
    else:
        copy = q * r * computed.itemsize
        iterating = (q * r + 5 * r * r) * wide.itemsize if right_factor == "polar" else 0  # for its H
        finding_Q = copy + max(orthonormalizing(q), iterating)
    working = brought + max(orthonormalizing(p), P_and_R + finding_Q)

    # What there is afterwards: Q, P and R, as they were found and as they are sent.
    R = made(q * r, computed, wide) if right_factor == "normalize" else q * r * computed.itemsize
    held = brought + (p + q) * r * wide.itemsize + made((p + q) * r, sent, wide) + R

    update = numbers * added.itemsize + made(p * r, added, sent)
    if has_tail:
        finding_tail = 2 * q * r * wide.itemsize
        Q_less_R = q * r * of_q.itemsize + made(q * r, added, of_q)
        updating = update + Q_less_R + max(made(numbers, added, kept), made(numbers, dtype, added))
    else:
        finding_tail, updating = 0, update + made(q * r, added, sent) + made(numbers, dtype, added)

    fading = 0
    if feeds_back:  # P or Q times T, in the dtype of products, and these if M has another one
        times_T = (p if right_factor == "normalize" else min(p, q)) * r * of_q.itemsize
        for_product = made(p * r, computed, of_q) + made(q * r, computed, sent) + made(numbers, computed, kept)
        fading = numbers * dtype.itemsize + times_T + for_product

    ways = numbers * (kept.itemsize * feeds_back + dtype.itemsize) + q * r * kept.itemsize
    returning = 2 * ways + (p + q) * r * sent.itemsize
    return float(max(returning, working, held + max(finding_tail, updating, fading)))
