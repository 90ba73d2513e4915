"""Whether Triton's kernels compile for Hopper GPUs, which takes none, and fit into their shared memory."""

import subprocess
import sys
from itertools import product

import pytest

SHARED_MEMORY = 227 * 1024  # bytes of a block on an H100


def compiled(kernel: str, dtype: str, precision: str) -> int:
    """Return the bytes of shared memory of a kernel."""
    from importlib import import_module

    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from orthon.linalg.kernels.products import MOST_COLUMNS
    from orthon.linalg.kernels.triton.tiles import tiles

    module = import_module(f"orthon.linalg.kernels.triton.{kernel}")
    storage = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    size, names = tiles(storage), module._kernel.arg_names
    constants = {"HAS_C": True, "SIDE": size.side, "DEPTH": size.depth, "PRECISION": precision, "COLS": MOST_COLUMNS}
    constants |= {"RATE_IS_THERE": True, "BY_IS_THERE": False, "a_col": 1, "b_row": 1, "c_col": 1, "x_col": 1}
    constants |= {"p_col": 1, "q_col": 1, "m_col": 1, "g_col": 1}
    warps = size.warps
    if kernel == "add_and_multiply":
        warps = 8
        constants |= {"ROWS": module._ROWS, "DEPTH": module._BYTES // storage.itemsize}
    constants = {name: value for name, value in constants.items() if name in names}
    floats = {"alpha": "fp32", "beta": "fp32", "gain": "fp32", "by": "fp32", "rate": "*fp32"}
    signature = {
        name: "constexpr" if name in constants else f"*{dtype}" if name.endswith("pointer") else floats.get(name, "i32")
        for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] in ("i32", f"*{dtype}")
    }
    source = ASTSource(module._kernel, signature, {(names.index(name),): x for name, x in constants.items()}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return int(made.metadata.shared)


CASES = [
    *product(("symmetric_product", "add_and_multiply", "subtract_product"), (("bf16", "ieee"), ("fp32", "tf32"))),
    ("add_and_multiply", ("fp32", "ieee")),
]


@pytest.mark.long
def test_kernels_compile_for_hopper() -> None:
    """In a process that has not told Triton to interpret."""
    pytest.importorskip("triton")
    code = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
from tests.test_compiled_kernels import CASES, SHARED_MEMORY, compiled
for kernel, (dtype, precision) in CASES:
    shared = compiled(kernel, dtype, precision)
    assert shared <= SHARED_MEMORY, f"{kernel}, {dtype}, {precision}: {shared} bytes of shared memory"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
