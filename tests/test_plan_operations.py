"""What one operation of torch is counted for: against torch's own counter, and against formulas by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from orthon.linalg.device import meta_stands_for
from orthon.linalg.precision import float32_products
from orthon.machines import MACHINES
from orthon.plan.operations import LARGE_BLOCK, Operation, counted

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CUDA = torch.device("cuda")
H100 = MACHINES["h100"]
Call = Callable[[], object]


class Operations(TorchDispatchMode):
    """Counts each operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.append(counted(func, args, kwargs or {}, result))
        return result


def operations(call: Call) -> list[Operation]:
    with Operations() as mode:
        call()
    return mode.seen


def single(call: Call) -> Operation:
    """Return the one operation of a call that does something."""
    (operation,) = [o for o in operations(call) if o.launches]
    return operation


def x(*shape: int, dtype: torch.dtype = F32, device: str = "meta") -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


# Products

A, B, C = x(6, 5), x(5, 7), x(6, 7)
A3, B3, C3 = x(4, 6, 5), x(4, 5, 7), x(4, 6, 7)

LIKE_TORCH: dict[str, Call] = {
    "mm": lambda: A @ B,
    "mm of transposed": lambda: A.mT @ x(6, 3),
    "bmm": lambda: A3 @ B3,
    "addmm": lambda: torch.addmm(C, A, B, beta=0.5),
    "baddbmm": lambda: torch.baddbmm(C3, A3, B3),
    "matmul of 4 dims": lambda: x(2, 3, 6, 5) @ x(5, 7),
    "linear": lambda: torch.nn.functional.linear(A, x(7, 5), x(7)),
    "einsum": lambda: torch.einsum("bij,bkj->bik", A3, x(4, 9, 5)),
    "einsum of three": lambda: torch.einsum("ij,jk,kl->il", A, B, x(7, 2)),
}


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_products_are_what_torch_counts(name: str) -> None:
    with FlopCounterMode(display=False) as counter:
        LIKE_TORCH[name]()
    assert sum(o.flops for o in operations(LIKE_TORCH[name])) == counter.get_total_flops() > 0


BY_HAND: dict[str, tuple[Call, int, int]] = {  # flops, and the smallest side
    "addmm_": (lambda: C.addmm_(A, B), 2 * 6 * 5 * 7, 5),
    "baddbmm_": (lambda: C3.baddbmm_(A3, B3, beta=0.5), 4 * 2 * 6 * 5 * 7, 5),
    "addbmm_": (lambda: C.addbmm_(A3, B3), 4 * 2 * 6 * 5 * 7, 5),
    "addbmm": (lambda: torch.addbmm(C, A3, B3), 4 * 2 * 6 * 5 * 7, 5),
    "mm out": (lambda: torch.mm(A, B, out=C), 2 * 6 * 5 * 7, 5),
    "bmm out": (lambda: torch.bmm(A3, B3, out=C3), 4 * 2 * 6 * 5 * 7, 5),
    "mv": (lambda: torch.mv(A, x(5)), 2 * 6 * 5, 1),
    "addmv": (lambda: torch.addmv(x(6), A, x(5)), 2 * 6 * 5, 1),
    "addmv_": (lambda: x(6).addmv_(A, x(5)), 2 * 6 * 5, 1),
    "dot": (lambda: torch.dot(x(9), x(9)), 2 * 9, 1),
    "out_dtype": (lambda: torch.mm(x(6, 5, dtype=BF16), x(5, 7, dtype=BF16), out_dtype=F32), 2 * 6 * 5 * 7, 5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_products_by_hand(name: str) -> None:
    call, flops, side = BY_HAND[name]
    found = max(operations(call), key=lambda o: o.flops)
    assert (found.flops, found.side, found.launches) == (flops, side, 1)


@pytest.mark.parametrize(("dtype", "rate"), [(F64, "float64"), (F32, "float32"), (BF16, "bfloat16"), (F16, "bfloat16")])
def test_rates_follow_the_dtype(dtype: torch.dtype, rate: str) -> None:
    assert single(lambda: x(6, 5, dtype=dtype) @ x(5, 7, dtype=dtype)).rate == rate


def test_float32_products_on_gpus_follow_the_setting() -> None:
    def rate() -> str:
        return single(lambda: A @ B).rate

    with meta_stands_for(CUDA), float32_products("tf32"):
        assert rate() == "tf32"
        with float32_products("ieee"):
            assert rate() == "float32"
    with meta_stands_for(torch.device("cpu")), float32_products("tf32"):
        assert rate() == "float32", "CPUs multiply in full"
    with meta_stands_for(CUDA), float32_products("tf32"):
        assert single(lambda: x(6, 5, dtype=F64) @ x(5, 7, dtype=F64)).rate == "float64"


# Factorizations

FACTORIZATIONS: dict[str, tuple[Call, float]] = {
    "cholesky": (lambda: torch.linalg.cholesky_ex(x(4, 9, 9)), 4 * 9**3 / 3),
    "cholesky out": (lambda: torch.linalg.cholesky_ex(x(9, 9), out=(x(9, 9), x(dtype=torch.int32))), 9**3 / 3),
    "solve from the right": (
        lambda: torch.linalg.solve_triangular(x(4, 9, 9), x(4, 20, 9), upper=True, left=False),
        4 * 20 * 9**2,
    ),
    "solve from the left": (lambda: torch.linalg.solve_triangular(x(9, 9), x(9, 20), upper=False), 20 * 9**2),
    "solve out": (
        lambda: torch.linalg.solve_triangular(x(9, 9), B9, upper=True, left=False, out=B9),
        20 * 9**2,
    ),
    "inverse": (lambda: torch.linalg.inv(x(4, 9, 9)), 2 * 4 * 9**3),
    "eigh": (lambda: torch.linalg.eigh(x(4, 9, 9)), 9 * 4 * 9**3),
    "svd": (lambda: torch.linalg.svd(x(4, 20, 9), full_matrices=False), 4 * (6 * 20 * 9**2 + 20 * 9**3)),
    "svd of wide": (lambda: torch.linalg.svd(x(9, 20), full_matrices=False), 6 * 20 * 9**2 + 20 * 9**3),
    "qr": (lambda: torch.linalg.qr(x(20, 9)), 4 * 20 * 9**2 - 4 / 3 * 9**3),
}
B9 = x(20, 9)


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_factorizations_by_hand(name: str) -> None:
    call, flops = FACTORIZATIONS[name]
    found = [o for o in operations(call) if o.factoring]
    assert [o.factoring for o in found] == pytest.approx([flops])
    assert all(o.flops == 0 and o.side == 9 and not o.in_float64 for o in found)


def test_factorizations_in_float64_are_known() -> None:
    assert single(lambda: torch.linalg.cholesky_ex(x(9, 9, dtype=F64))).in_float64


# Traffic: what is counted, in numbers of 4 bytes read and written, of new memory, and launches.

M, V, SQUARE, LARGE = x(100, 10), x(10), x(9, 9), x(100, 100)
ROWS = torch.empty(3, dtype=torch.long, device="meta")  # two numbers each
LIST = [x(100, 10) for _ in range(7)]

TRAFFIC: dict[str, tuple[Call, int, int, int]] = {
    "view": (lambda: M.mT[2:5].unsqueeze(0).expand(4, 3, 100), 0, 0, 0),
    "split": (lambda: torch.split(M, 20), 0, 0, 0),
    "reshape that copies": (lambda: M.mT.reshape(-1), 2000, 1000, 1),
    "empty": (lambda: torch.empty_like(M), 0, 1000, 0),
    "zeros": (lambda: torch.zeros(100, 10, device="meta"), 1000, 1000, 1),
    "fill": (lambda: M.fill_(3), 1000, 0, 1),
    "zero": (lambda: M.zero_(), 1000, 0, 1),
    "add": (lambda: M + LIST[0], 3000, 1000, 1),
    "add itself": (lambda: M + M, 2000, 1000, 1),
    "add a number": (lambda: M.add_(1), 2000, 0, 1),
    "add its transposed": (lambda: torch.add(SQUARE, SQUARE.mT, out=SQUARE), 162, 0, 1),
    "add a row": (lambda: M + V, 2010, 1000, 1),
    "add what is expanded": (lambda: M + V.expand(100, 10), 2010, 1000, 1),
    "add in place": (lambda: M.add_(LIST[0]), 3000, 0, 1),
    "double in place": (lambda: M.add_(M), 2000, 0, 1),
    "add into": (lambda: torch.add(M, LIST[0], out=LIST[1]), 3000, 0, 1),
    "copy": (lambda: M.copy_(LIST[0]), 2000, 0, 1),
    "copy of a part": (lambda: M[:50].copy_(LIST[0][:50]), 1000, 0, 1),
    "to bfloat16": (lambda: M.to(BF16), 1500, 500, 1),
    "sum": (lambda: M.sum(), 1001, 1, 1),
    "sum of rows": (lambda: M.sum(1), 1100, 100, 1),
    "cat": (lambda: torch.cat([M, LIST[0]]), 4000, 2000, 1),
    "product": (lambda: M.mT @ M, 1100, 100, 1),
    "product added": (lambda: LARGE.addmm_(M, M.mT), 21000, 0, 1),
    "rows chosen": (lambda: M.index_select(0, ROWS), 66, 30, 1),
    "rows put": (lambda: M.index_copy_(0, ROWS, M[:3]), 66, 0, 1),
    "rows added": (lambda: M.index_add_(0, ROWS, M[:3]), 96, 0, 1),
    "list of sums": (lambda: torch._foreach_add_(LIST, LIST[::-1]), 14000, 0, 7),
    "list of products": (lambda: torch._foreach_mul(LIST, 2.0), 14000, 7000, 7),
    "list of copies": (lambda: torch._foreach_copy_(LIST[:3], LIST[3:6]), 6000, 0, 3),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_by_hand(name: str) -> None:
    call, numbers, fresh, launches = TRAFFIC[name]
    with meta_stands_for(torch.device("cpu")):
        made = [o for o in operations(call) if o != Operation()]
    assert sum(o.bytes for o in made) == 4 * numbers
    assert sum(o.fresh for o in made) == 4 * fresh
    assert sum(o.launches for o in made) == launches


def test_real_tensors_are_counted_as_those_on_meta() -> None:
    for call in (lambda d: x(9, 4, device=d) @ x(4, 3, device=d), lambda d: x(9, 4, device=d).add_(x(4, device=d))):
        assert operations(lambda call=call: call("cpu")) == operations(lambda call=call: call("meta"))


def test_a_fused_step_moves_seven_numbers_for_each_weight() -> None:
    """Weights and two averages are read and written, gradients read; the counts of steps are read."""
    params = [torch.nn.Parameter(x(100, 10, device="cpu")) for _ in range(3)]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = torch.optim.AdamW(params, fused=True)
    optimizer.step()
    (step,) = [o for o in operations(optimizer.step) if o.bytes > 1000]
    assert step.bytes == 4 * (7 * 3000 + 3)
    assert step.launches == 3


@pytest.mark.parametrize(
    ("count", "numbers", "lists", "launches"),
    [
        (7, 1000, 1, 1),
        (110, 1000, 1, 1),
        (111, 1000, 1, 2),  # 110 tensors a launch
        (128, 1000, 2, 2),  # of two lists 64
        (4, 80 * 65536, 1, 1),  # 320 blocks a launch
        (5, 80 * 65536, 1, 2),
    ],
)
def test_lists_on_gpus_share_launches(count: int, numbers: int, lists: int, launches: int) -> None:
    these, those = ([x(numbers) for _ in range(count)] for _ in range(2))
    with meta_stands_for(CUDA):
        call = (lambda: torch._foreach_mul_(these, 2.0)) if lists == 1 else (lambda: torch._foreach_add_(these, those))
        assert single(call).launches == launches


@pytest.mark.parametrize(("count", "launches"), [(36, 1), (37, 2)])
def test_a_fused_step_on_gpus_takes_36_tensors_a_launch(count: int, launches: int) -> None:
    """Of four lists: weights, gradients and two averages, whatever their dtypes."""
    lists = [[x(100, dtype=BF16) for _ in range(count)] for _ in range(4)]
    steps = [x() for _ in range(count)]
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
    more = {"amsgrad": False, "maximize": False}
    func, args = torch.ops.aten._fused_adamw_.default, (*lists, [], steps)
    with meta_stands_for(CUDA):
        assert counted(func, args, options | more, None).launches == launches


def test_transposed_copies_are_known() -> None:
    assert single(lambda: M.mT.contiguous()).reorders
    assert single(lambda: SQUARE.copy_(LARGE[:9, :9].mT)).reorders
    assert single(lambda: torch.add(LARGE, LARGE.mT, out=LARGE)).reorders
    assert not single(lambda: M.mT.clone()).reorders, "it keeps the order"
    assert not single(lambda: M + V.expand(100, 10)).reorders


# Seconds


def test_the_slower_of_arithmetic_and_traffic_counts() -> None:
    machine = replace(H100, kernel=1e-9, product_side=100.0, bfloat16=1e12, memory_bandwidth=1e12, reordering=5e11)
    product = Operation(flops=8e12, rate="bfloat16", side=100, bytes=10**9, launches=1)
    assert product.seconds(machine) == pytest.approx(16, rel=1e-6), "half of the rate"
    assert replace(product, side=10**9).seconds(machine) == pytest.approx(8, rel=1e-6)
    assert replace(product, bytes=20 * 10**12).seconds(machine) == pytest.approx(20)
    assert Operation(bytes=10**12, launches=1, reorders=True).seconds(machine) == pytest.approx(2)
    assert Operation(bytes=4, launches=3).seconds(machine) == pytest.approx(3e-9, rel=0.01)
    assert Operation().seconds(machine) == 0


def test_factorizations_have_their_own_rate() -> None:
    machine = replace(H100, factorization=1e12, factor_side=50.0, float32=2e13, float64=1e13, kernel=1e-9)
    found = Operation(factoring=3e12, side=50, launches=1)
    assert found.seconds(machine) == pytest.approx(6)
    assert replace(found, in_float64=True).seconds(machine) == pytest.approx(12)


def test_large_new_memory_costs_where_the_system_gives_it() -> None:
    empty = Operation(fresh=LARGE_BLOCK)
    assert empty.seconds(H100) == 0
    assert empty.seconds(replace(H100, first_touch=1e-9)) == pytest.approx(LARGE_BLOCK * 1e-9)
    assert replace(empty, fresh=LARGE_BLOCK - 1).seconds(replace(H100, first_touch=1e-9)) == 0
