"""The one error that a user is meant to read, and how a command ends with it."""

import os
import signal
import sys
import threading
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


def stop(number: int, _: Any = None) -> None:
    """A signal's handler. The first one ends the command with cleaning up, and none that follows interrupts that."""
    for every in (signal.SIGINT, signal.SIGTERM):
        signal.signal(every, signal.SIG_IGN)
    raise KeyboardInterrupt(128 + number)


def _again_if_swallowed(found: Any) -> None:
    """sys.unraisablehook: a destructor or a callback of the garbage collector lets no exception through. Where a signal
    met one, it is sent again."""
    error = found.exc_value
    if not (isinstance(error, KeyboardInterrupt) and error.args):
        sys.__unraisablehook__(found)
        return
    number = error.args[0] - 128
    signal.signal(number, stop)
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def exit_status(command: Callable[[], Any], interrupted: str = "interrupted") -> int:
    """Of a command, which returns it, or None for 0. A user's mistake is one line on stderr, and 2; so is a warning.
    Ctrl-C is one line, and 130; SIGTERM the same, and 143. After them the process hears no signal until it ends."""
    show, unraisable = warnings.showwarning, sys.unraisablehook
    sys.unraisablehook = _again_if_swallowed
    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]

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
    except KeyboardInterrupt as error:
        before = []
        print(interrupted, file=sys.stderr)
        return error.args[0] if error.args else 130
    finally:
        warnings.showwarning = show
        if sys.unraisablehook is _again_if_swallowed:  # a command that sets its own needs it to the end of the process
            sys.unraisablehook = unraisable
        for number, handler in before:
            signal.signal(number, handler)
