"""What `import orthon` imports, and what it leaves to the first use."""

import subprocess
import sys

import pytest

import orthon


def in_a_new_process(code: str) -> list[str]:
    """Return the words that the code prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_what_few_programs_need_is_not_imported() -> None:
    code = """
import sys
import torch
before = set(sys.modules)
import orthon
print(*(set(sys.modules) - before))
"""
    imported = in_a_new_process(code)
    assert {"orthon", "orthon.optimizers.dion", "orthon.explain"} <= set(imported)
    lazy = (
        "orthon.saving.convert", "orthon.saving.checkpoint", "orthon.train", "orthon.testing", "orthon.integrations",
        "numpy", "triton",
    )  # fmt: skip
    slow = ("torch.distributed.tensor", "torch.distributed.checkpoint", "torch._dynamo", "torch._inductor", "sympy")
    for package in (*lazy, *slow):
        assert not [name for name in imported if name == package or name.startswith(f"{package}.")], package
    others = {name.partition(".")[0] for name in imported} - {"orthon", "torch", "_distutils_hack"}
    assert others <= set(sys.stdlib_module_names)


def test_other_peoples_trainers_are_not_imported() -> None:
    code = "import sys, orthon; orthon.integrations.hf(orthon.Dion, lr=0.02); print(*sys.modules)"
    assert not {"transformers", "accelerate", "torchtitan"} & set(in_a_new_process(code))


def test_all_names_are_there() -> None:
    from orthon import integrations, saving

    for module in (orthon, saving, integrations):
        assert set(module.__all__) <= set(dir(module))
        assert all(getattr(module, name) is not None for name in module.__all__)
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Adam'"):
            _ = module.Adam
    star: dict[str, object] = {}
    exec("from orthon import *", star)
    assert set(orthon.__all__) <= star.keys()
    assert star["convert_state"] is orthon.convert_state
