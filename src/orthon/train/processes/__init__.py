"""The processes that carry out one command together."""
