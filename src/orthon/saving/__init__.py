"""States of optimizers: loaded, read from checkpoints, and converted from those of other packages."""
