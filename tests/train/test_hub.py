"""A hub that cannot be reached, in real processes: one try, and one line."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orthon.train.text.hub import hub


@pytest.fixture
def deaf() -> Iterator[tuple[str, list[int]]]:
    """The address of a server that hangs up, and a number for each connection."""
    connections: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(1)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)


CASES = {
    "a data set": ("datasets", ["--data.source=hf", "--data.name=some/set"], "cannot load the data set some/set: "),
    "a tokenizer": (None, ["--data.tokenizer=some/model"], "cannot get tokenizer.json of some/model: "),
    "a tokenizer without an owner": (None, ["--data.tokenizer=gpt2"], "cannot get tokenizer.json of gpt2: "),
}


@pytest.mark.parametrize(("needs", "words", "message"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("way", ["hangs up", "refuses", "offline"])
def test_one_line_after_one_try(
    tmp_path: Path, deaf: tuple[str, list[int]], needs: str | None, words: list[str], message: str, way: str
) -> None:
    if needs is not None:
        pytest.importorskip(needs)
    address, connections = deaf
    with socket.create_server(("127.0.0.1", 0)) as closed:
        unused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": address if way == "hangs up" else unused,
        "HF_HUB_OFFLINE": "1" if way == "offline" else "0",
    }
    command = [sys.executable, "-m", "orthon", "train", *words, f"--out={tmp_path / 'run'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"orthon: {message}")
    assert done.stderr.count("\n") == 1
    assert ("HF_HUB_OFFLINE is set" if way == "offline" else "cannot be reached") in done.stderr
    assert len(connections) == (1 if way == "hangs up" else 0)


def test_the_switch_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr("orthon.train.text.hub._unreachable", lambda: "a reason")
    before = constants.HF_HUB_OFFLINE
    with hub() as reason:
        assert reason == "a reason"
        assert constants.is_offline_mode()
    assert before == constants.HF_HUB_OFFLINE
