"""The error that a user can mend: shown by the command line as one line, with exit code 2."""


class InputError(ValueError):
    """Report an input that cannot be used: what it is, what was expected, what to do.

    Raised at a public door for bad files, recipes, rows and arguments. Programming errors stay
    `TypeError`, `AssertionError` and the like, with their traceback.
    """
