"""The errors that end a command early."""


class UserError(ValueError):
    """A mistake that the user can correct: wrong settings, paths or files. Shown as one line; exit code 2."""


class TrainingError(RuntimeError):
    """The training itself went wrong. Shown as one line; exit code 1."""


class DivergedError(TrainingError):
    """A loss or a gradient is not finite. In a comparison of runs this counts as a result."""
