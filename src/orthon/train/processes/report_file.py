"""torchrun's table of failures: its end is an error that the processes themselves report, if they do."""

import json
import os
import time
from contextlib import suppress

FILE = "TORCHELASTIC_ERROR_FILE"  # torchrun gives each process a file for its error


def report(line: str) -> None:
    """Give torchrun the line that says why this process fails. It shows the line at the end of its table.

    The format is that of torch.distributed.elastic.multiprocessing.errors, but for the traceback.
    """
    path = os.environ.get(FILE)
    if not path:
        return
    message = {"message": f"none\n\n{line}", "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError), open(path, "x", encoding="utf-8") as file:  # without it, torchrun shows the exit code alone
        json.dump({"message": message}, file)
