"""The trainer that gets a signal outside of the training: python signalled_trainer.py WHEN SIGNAL WORDS...

WHEN is a function's name. The process, or rank 0 of many, gets the signal when it calls the function.
"""

import os
import signal
import sys
from importlib import import_module

from orthon.train.commands.main import main

ROOMS = {
    "carry_out": "orthon.train.commands.app",
    "load_corpus": "orthon.train.commands.train",
    "newest_checkpoint": "orthon.train.commands.train",
    "build_model": "orthon.train.run.run",
    "make_progress": "orthon.train.run.run",
    "generate": "orthon.train.run.run",
    "write_summary": "orthon.train.run.run",
}

WHEN, NUMBER = sys.argv[1], signal.Signals[sys.argv[2]]
room = import_module(ROOMS[WHEN])
original = getattr(room, WHEN)


def signalled(*args: object, **kwargs: object) -> object:
    if os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), NUMBER)
    return original(*args, **kwargs)


setattr(room, WHEN, signalled)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
sys.exit(main(sys.argv[3:]))
