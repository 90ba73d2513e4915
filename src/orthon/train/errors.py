"""The ways in which a command can end early."""


class UserError(ValueError):
    """The user can put it right: wrong settings, paths or files. Shown as one line, exit code 2."""


class TrainingError(RuntimeError):
    """The training itself went wrong. Shown as one line, exit code 1."""


class DivergedError(TrainingError):
    """A loss or a gradient is no number: a result, too, where runs are compared."""
