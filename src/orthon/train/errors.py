"""The two ways in which a command can end early."""


class UserError(ValueError):
    """The user can put it right: wrong settings, paths or files. Shown as one line, exit code 2."""


class TrainingError(RuntimeError):
    """The training itself went wrong: a loss that is no number. Shown as one line, exit code 1."""
