"""What an exception tells the user."""

from __future__ import annotations


def describe_error(error: BaseException) -> str:
    """Puts an exception into one line for the user.

    Args:
        error: The exception.

    Returns:
        The first line of its message, with the second if the first ends in a colon. Of an error of the operating
        system: what went wrong, and the file. Never empty: an exception without a message is named by its type.
    """
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, UnicodeDecodeError):
        message = f"not {error.encoding} text ({error.reason}, byte {error.start})"
    elif isinstance(error, KeyError) and len(error.args) == 1:
        key = str(error.args[0])  # as a message, Python puts it in quotes
        message = key if " " in key else f"{key} is missing"
    else:
        message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
