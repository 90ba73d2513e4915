"""How long `orthon plan` takes, and how much memory, for the largest model on thousands of ranks."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from orthon.train.commands.main import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


@pytest.mark.long
def test_the_table_for_4096_ranks() -> None:
    words = "plan --model.size 405B --mesh.dp-shard 4096 --machine h100 --no-other-ranks"
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words.split()], capture_output=True, text=True, check=True)
    print(done.stdout)
    code, seconds, kilobytes = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert "4,096 GPUs of h100" in done.stdout
    assert seconds < 60  # of one core: others may use this machine too
    assert kilobytes < 2 * 2**20
