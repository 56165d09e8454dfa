"""The one error a person is meant to read."""

from ..config.checks import sentence as one_line


class Refused(ValueError):
    """An input that cannot be used, told in one sentence: what was wrong, where, and what to do.

    Raised before any compute. The command line prints the sentence and exits with code 2; a
    traceback is kept for bugs.

    Args:
        sentence: What it says. It may quote the input: line breaks and other control characters become spaces, and
            what is too long is cut.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


def first_line(error: BaseException) -> str:
    """What an error of another library says, for a sentence: its first line, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
