"""A long run of short steps with everything that may go wrong on the way: `python -m tests.soak --steps 2000`."""
