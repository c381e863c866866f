"""The one error that a user is meant to read, and how a command ends with it."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

LONGEST = 2000  # characters of a message


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that says what is wrong, where, and what to do."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Names and values in a message come from files: what a terminal would obey or could not show is escaped, and the
    middle of what nobody would read is left out."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"


def join_names(names: list[str], limit: int = 8) -> str:
    """`a, b, c and 12 more`: names for one sentence."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def exit_status(command: Callable[[], Any], interrupted: str = "interrupted") -> int:
    """Of a command, which returns it, or None for 0. A user's mistake is one line on stderr, and 2; so is a warning.
    Ctrl-C is one line, and 130."""
    show = warnings.showwarning

    def in_one_line(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if category is UserWarning:
            print(f"warning: {one_line(str(message))}", file=sys.stderr, flush=True)
        else:
            show(message, category, *where)

    warnings.showwarning = in_one_line  # type: ignore[assignment]  # it is called by position
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    finally:
        warnings.showwarning = show
