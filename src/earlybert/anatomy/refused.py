"""The one error a person is meant to read."""


class Refused(ValueError):
    """An input that cannot be used, told in one sentence: what was wrong, where, and what to do.

    Raised before any compute. The command line prints the sentence and exits with code 2; a
    traceback is kept for bugs.
    """
