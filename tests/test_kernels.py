"""Triton's kernels against float64; without a GPU, in Triton's interpreter."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import orthon
from orthon.linalg.kernels import add_and_multiply_, subtract_product_, symmetric_product
from orthon.linalg.kernels.dispatch import Crossover, in_triton, use
from orthon.linalg.kernels.products import MOST_COLUMNS
from orthon.linalg.kernels.triton.tiles import tiles

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {F32: 1e-5, F16: 2e-3, BF16: 1e-2}


@pytest.fixture(autouse=True)
def _interpreter_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter widen operands, whose bits in bfloat16 it multiplies as integers."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    language = pytest.importorskip("triton.language")
    plain = interpreter.InterpreterBuilder.create_dot

    def widened(self, a, b, *others):  # type: ignore[no-untyped-def]
        if a.dtype == language.bfloat16:
            a, b = (self.create_fp_ext(x, language.float32) for x in (a, b))
        return plain(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)


@pytest.fixture
def _triton() -> Iterator[None]:
    with use("triton"):
        yield


def randn(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def lay(x: Tensor, how: str) -> Tensor:
    """Return the same matrix with other strides."""
    if how == "transposed":
        return x.mT.contiguous().mT
    if how == "part of another":
        whole = torch.full((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1]), torch.nan, device=x.device, dtype=x.dtype)
        part = whole[..., 1:-2, ::2]
        return part.copy_(x)
    return x.contiguous()


LAYOUTS = ("contiguous", "transposed", "part of another")


def assert_near(actual: Tensor, expected: Tensor, size: Tensor, dtype: torch.dtype, case: object) -> None:
    assert actual.dtype == dtype, case
    assert actual.shape == expected.shape, case
    if actual.numel():
        error = float(((actual.double() - expected).abs() / size.amax().clamp_min(1e-30)).max())
        assert error <= TOLERANCE[dtype], f"{case}: off by {error:.1e}"


def assert_symmetric(actual: Tensor, size: Tensor, k: int, dtype: torch.dtype, case: object) -> None:
    """Assert that entries (i, j) and (j, i) differ by rounding alone, and not at all outside the diagonal tiles.

    Each of the two is a sum of k products in float32, in any order. Its error is at most γ = kε/(1 − kε) times the sum
    of the absolute values (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1). Then it is rounded to its
    dtype.
    """
    accumulated = k * torch.finfo(F32).eps
    gamma, rounded = accumulated / (1 - accumulated), torch.finfo(dtype).eps / 2
    difference = (actual.double() - actual.double().mT).abs()
    assert (difference <= 2 * ((1 + gamma) * (1 + rounded) - 1) * size).all(), case
    tile = torch.arange(actual.shape[-1], device=actual.device) // tiles(dtype).side
    assert not difference[..., tile[:, None] != tile].any(), case


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 130, 70), (0, 4, 4), (2, 0, 3), (2, 3, 0)], ids=str)
@pytest.mark.usefixtures("_triton")
def test_symmetric_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    b, m, k = shape
    for how in LAYOUTS:
        A = lay(randn(b, m, k, dtype=dtype), how)
        exact = A.double() @ A.double().mT
        size = A.double().abs() @ A.double().abs().mT
        actual = symmetric_product(A, A.mT)
        assert_near(actual, exact, size, dtype, how)
        assert_symmetric(actual, size, k, dtype, how)
        C = randn(b, m, m, dtype=dtype, seed=1)
        C = lay(C + C.mT, how)
        for alpha, beta in ((-0.5, 2.0), (2.0, 0.0)):
            actual = symmetric_product(A, A.mT, add=C, alpha=alpha, beta=beta)
            sizes = abs(alpha) * size + abs(beta) * C.double().abs()
            assert_near(actual, alpha * exact + beta * C.double(), sizes, dtype, (how, alpha, beta))
        assert_near(symmetric_product(A, A.mT, alpha=3.0), 3 * exact, 3 * size, dtype, how)


@pytest.mark.usefixtures("_triton")
def test_products_of_polynomials_in_one_matrix() -> None:
    X = randn(2, 150, 40).double()
    G = X @ X.mT / 100
    P = 2 * G - 0.1 * G @ G
    assert_near(symmetric_product(G.float(), P.float()), G @ P, G.abs() @ P.abs(), F32, "G P")


@pytest.mark.parametrize(("dtype", "grads"), [(BF16, BF16), (F16, F32), (F32, BF16), (F32, F32)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 70, 130, 20), (1, 64, 64, 64), (2, 5, 3, 1), (1, 0, 4, 2), (1, 4, 0, 2)], ids=str
)
@pytest.mark.usefixtures("_triton")
def test_add_and_multiply(shape: tuple[int, int, int, int], dtype: torch.dtype, grads: torch.dtype) -> None:
    b, m, n, r = shape
    for how, other, gain in ((LAYOUTS[0], LAYOUTS[1], 1.0), (LAYOUTS[1], LAYOUTS[2], -1.0), (*LAYOUTS[1:], 0.5)):
        M, G = lay(randn(b, m, n, dtype=dtype), how), lay(randn(b, m, n, dtype=grads, seed=1), other)
        Q = lay(randn(b, n, r, dtype=dtype, seed=2), other)
        expected = M.double() + gain * G.double()
        B = add_and_multiply_(M, G.unbind(), Q, gain=gain)
        assert_near(M, expected, expected.abs(), dtype, (how, gain))
        assert_near(B, M.double() @ Q.double(), M.double().abs() @ Q.double().abs(), dtype, (how, gain))


@pytest.mark.usefixtures("_triton")
def test_kernels_leave_alone_what_is_beside_a_part() -> None:
    for how in ("M", "X"):
        whole = torch.ones(1, 9, 12, device=DEVICE)
        part = whole[:, 2:7, 3:10]
        if how == "M":
            add_and_multiply_(part, [torch.ones_like(part[0])], torch.ones(1, 7, 2, device=DEVICE))
        else:
            ones = torch.ones(1, 7, 1, device=DEVICE)
            subtract_product_(part, ones[:, :5], ones, by=-1.0)
        assert (part == 2).all(), how
        assert whole.sum() == 9 * 12 + 35, how


@pytest.mark.usefixtures("_triton")
def test_products_with_many_columns_are_those_of_torch() -> None:
    r = MOST_COLUMNS + 1
    M, G, Q = randn(1, 4, 300), randn(1, 4, 300, seed=1), randn(1, 300, r, seed=2)
    expected = M + G
    assert torch.equal(add_and_multiply_(M, [G[0]], Q), expected @ Q)
    assert torch.equal(M, expected)


@pytest.mark.parametrize("on_device", [False, True], ids=["numbers", "tensors on the device"])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(F16, marks=pytest.mark.long), F32], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 130, 70, 20), (1, 64, 64, 64), (3, 5, 150, 70), (0, 4, 4, 2), (2, 4, 3, 0)], ids=str
)
@pytest.mark.usefixtures("_triton")
def test_subtract_product(shape: tuple[int, int, int, int], dtype: torch.dtype, on_device: bool) -> None:
    b, m, n, r = shape
    for how, rate, by in ((LAYOUTS[0], 0.25, 0.5), (LAYOUTS[1], 0.0, -2.0), (LAYOUTS[2], 1.0, 1.0)):
        X = lay(randn(b, m, n, dtype=dtype), how)
        P, Q = lay(randn(b, m, r, dtype=dtype, seed=1), how), lay(randn(b, n, r, dtype=dtype, seed=2), how)
        expected = (1 - rate) * X.double() - by * P.double() @ Q.double().mT
        size = X.double().abs() + abs(by) * P.double().abs() @ Q.double().abs().mT
        factors = (torch.tensor(x, device=DEVICE) if on_device else x for x in (rate, by))
        alone = X.clone()
        subtract_product_(X, P, Q, **dict(zip(("rate", "by"), factors, strict=True)))
        assert_near(X, expected, size, dtype, how)
        if b:
            subtract_product_(alone.unbind(), P, Q, rate=rate, by=by)
            assert torch.equal(alone, X), how


@pytest.mark.parametrize(("stored", "dtype"), [(F32, BF16), (F16, F32), (BF16, F32), (F32, torch.float64)], ids=str)
@pytest.mark.parametrize("how", LAYOUTS)
def test_products_of_another_dtype_are_subtracted(how: str, stored: torch.dtype, dtype: torch.dtype) -> None:
    for b, m, n, r in ((1, 1, 1, 1), (2, 130, 70, 20), (0, 4, 4, 2), (2, 4, 3, 0)):
        P, Q = lay(randn(b, m, r, dtype=dtype, seed=1), how), lay(randn(b, n, r, dtype=dtype, seed=2), how)
        for rate, by in product((0.0, 0.25, torch.tensor(0.25)), (0.5, torch.tensor(-2.0))):
            X = lay(randn(b, m, n, dtype=stored), how)
            expected = (1 - rate) * X.double() - by * P.double() @ Q.double().mT
            size = X.double().abs() + abs(by) * P.double().abs() @ Q.double().abs().mT
            coarsest = max(stored, dtype, key=lambda d: torch.finfo(d).eps)
            alone = X.clone()
            subtract_product_(X, P, Q, rate=rate, by=by, dtype=dtype)
            assert_near(X.to(coarsest), expected, size, coarsest, (how, rate, by))
            subtract_product_(alone.unbind() if b else alone, P, Q, rate=rate, by=by, dtype=dtype)
            assert torch.equal(alone, X), (how, rate, by)


@pytest.mark.parametrize("of_factors", [BF16, F32], ids=str)
@pytest.mark.parametrize("how", LAYOUTS)
def test_torch_subtracts_products_and_adds_gradients_where_they_lie(how: str, of_factors: torch.dtype) -> None:
    P, Q = randn(2, 40, 5, dtype=of_factors, seed=1), randn(2, 30, 5, dtype=of_factors, seed=2)
    product, start = P.double() @ Q.double().mT, randn(2, 40, 30, dtype=BF16)
    size = start.double().abs() + P.double().abs() @ Q.double().abs().mT
    for as_list, on_device in ((False, False), (False, True), (True, False), (True, True)):
        X = lay(start.clone(), how)
        rate, by = (torch.tensor(x, device=DEVICE) if on_device else x for x in (0.25, -0.5))
        with use("torch"):
            subtract_product_(X.unbind() if as_list else X, P, Q, rate=rate, by=by)
        assert_near(X, 0.75 * start.double() + 0.5 * product, size, BF16, (as_list, on_device))

    for shape in ((40, 30), (80, 60)):  # below and above what a CPU copies
        M, G, right = (randn(2, *shape, dtype=d, seed=3) for d in (BF16, of_factors, BF16))
        M, expected = lay(M, how), M.double() - G.double()
        with use("torch"):
            B = add_and_multiply_(M, G.unbind(), right.mT, gain=-1.0)
        assert_near(M, expected, expected.abs(), BF16, shape)
        assert_near(B, M.double() @ right.double().mT, M.double().abs() @ right.double().abs().mT, BF16, shape)


GRADIENTS = [torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)) for shape in ((70, 130), (70, 130))]


def steps(optimizer: str, mode: str, dtype: torch.dtype, *, tensor_lr: bool) -> list[Tensor]:
    params = [nn.Parameter(torch.zeros(g.shape[1:]).to(DEVICE, dtype)) for g in GRADIENTS]
    lr = torch.tensor(0.1, device=DEVICE) if tensor_lr else 0.1
    options = {"polar_dtype": dtype} if optimizer == "Muon" else {}
    made = getattr(orthon, optimizer)([(f"{i}", p) for i, p in enumerate(params)], lr, weight_decay=0.1, **options)
    with use(mode):
        for step in range(2):
            for param, gradient in zip(params, GRADIENTS, strict=True):
                param.grad = gradient[step].to(DEVICE, dtype)
            made.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("optimizer", ["Dion", "Muon"])
def test_kernels_make_the_steps_of_torch(optimizer: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthon.algorithms.weights.LARGE", 0)
    tolerance = 1e-4 if dtype == F32 else 0.1  # of polar factors in bfloat16; 0.06 here
    for tensor_lr in (False, True) if optimizer == "Dion" else (False,):
        by_torch, by_triton = (steps(optimizer, mode, dtype, tensor_lr=tensor_lr) for mode in ("torch", "triton"))
        for expected, actual in zip(by_torch, by_triton, strict=True):
            error = float(torch.linalg.vector_norm(actual.double() - expected) / torch.linalg.vector_norm(expected))
            assert 0 < error <= tolerance, f"off by {error:.1e}"


def test_torch_computes_as_no_kernel_has_been_measured() -> None:
    for mode in ("auto", "torch"):
        with use(mode):
            assert not in_triton("symmetric_product", randn(2, 8192, 2), 8192), mode
    assert not in_triton("symmetric_product", randn(2, 2), 8192)


def test_a_measured_crossover_chooses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        ndim, dtype, device = 3, BF16, torch.device("cuda", 0)

        def __len__(self) -> int:
            return 2

    table = (Crossover("symmetric_product", (9, 0), BF16, batched=True, size=1024),)
    monkeypatch.setattr("orthon.linalg.kernels.dispatch.CROSSOVERS", table)
    for kernel, capability, dtype, size, expected in [
        ("symmetric_product", (9, 0), BF16, 1024, True),
        ("symmetric_product", (9, 0), BF16, 1023, False),
        ("symmetric_product", (9, 0), F32, 4096, False),
        ("symmetric_product", (8, 0), BF16, 4096, False),
        ("subtract_product_", (9, 0), BF16, 4096, False),
    ]:
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(Cuda, "dtype", dtype)
        assert in_triton(kernel, Cuda(), size) == expected, (kernel, capability, dtype, size)  # type: ignore[arg-type]


def test_modes_of_kernels() -> None:
    with pytest.raises(ValueError, match="mode should be one of 'auto', 'torch', 'triton', but is 'cuda'"), use("cuda"):
        pass
    with use("triton"):
        assert in_triton("symmetric_product", randn(2, 2), 2)
        assert not in_triton("symmetric_product", randn(2, 2).double(), 2)
        with use("torch"):
            assert not in_triton("symmetric_product", randn(2, 2), 2)
        assert in_triton("symmetric_product", randn(2, 2), 2)


def test_the_package_works_without_triton() -> None:
    """The package imports and works, and says what is missing where it is asked for."""
    code = """
import sys
sys.modules["triton"] = None
import torch, orthon
from orthon.linalg.kernels import dispatch
param = torch.nn.Parameter(torch.ones(4, 3)); param.grad = torch.ones(4, 3)
orthon.Dion([param]).step()
dispatch.find_spec = lambda _: None
try:
    dispatch.use("triton").__enter__()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "needs Triton; pip install triton" in done.stdout, done.stderr
