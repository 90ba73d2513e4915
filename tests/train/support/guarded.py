"""Commands of the trainer on what strangers have made: python guarded.py < CASES > RESULTS, both lines of JSON.

A case is a folder and the words of a command. Whatever Python opens, makes, renames or deletes must lie in the folder,
or be read from where Python and its packages are. No program may be started, and nothing connected to.
"""

import contextlib
import faulthandler
import io
import json
import os
import resource
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib import font_manager  # noqa: F401  # has a cache that it makes when it is first imported

from orthon.train.commands.main import main

READ_FROM = [
    *{os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())},
    *(os.path.realpath(path) for path in sys.path if path),
    "/proc",
    "/sys",
    "/dev/null",
    "/etc/localtime",
    "/usr/lib",
]
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
NEVER = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen"}

folder = ""
violations: list[str] = []


def lies_in(path: str, tops: list[str]) -> bool:
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


def real(path: str, *, follow: bool) -> str:
    """Where a path leads. The last part may be a link that is not followed."""
    if follow:
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))


def watch(event: str, args: tuple[Any, ...]) -> None:
    if not folder:
        return
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path, flags = os.fsdecode(args[0]), args[2] or 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        place = real(path, follow=not flags & os.O_NOFOLLOW)
        if not lies_in(place, [folder, "/dev/null"] if writes else [folder, *READ_FROM]):
            violations.append(f"{'writes' if writes else 'reads'} {place}")
    elif event in CHANGES:
        paths = [path for path in args if isinstance(path, str | bytes | os.PathLike)]
        for path in paths:
            if os.path.isabs(os.fsdecode(path)) and not lies_in(real(os.fsdecode(path), follow=False), [folder]):
                violations.append(f"{event} {os.fsdecode(path)}")
    elif event in NEVER:
        violations.append(f"{event} {args[:1]}")


def carry_out(words: list[str]) -> dict[str, Any]:
    """Run a command; tell how it ended, what it said, and what it took."""
    said, out = io.StringIO(), io.StringIO()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    code: int | str
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
        try:
            code = main(words)
        except BaseException as error:
            code = f"{type(error).__name__}: {str(error)[:300]}"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "code": code,
        "said": said.getvalue(),
        "out": out.getvalue(),
        "seconds": time.process_time() - start,
        "megabytes": taken / 1024,
    }


if __name__ == "__main__":
    faulthandler.enable()
    torch.set_num_threads(1)
    warm, *cases = map(json.loads, sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(warm["words"]) == 0  # imports what it needs
    sys.addaudithook(watch)
    for case in cases:
        violations.clear()
        folder = os.path.realpath(case["folder"])
        faulthandler.dump_traceback_later(30, exit=True)
        result = carry_out(case["words"])
        faulthandler.cancel_dump_traceback_later()
        folder = ""
        left = sorted(path.name for path in Path(case["folder"]).iterdir())
        print(json.dumps({"name": case["name"], **result, "violations": violations[:5], "left": left}), flush=True)
