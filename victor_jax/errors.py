"""The one error that a user is meant to read."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that says what is wrong, where, and what to do."""


def some(names: list[str], limit: int = 8) -> str:
    """`a, b, c and 12 more`: names for one sentence."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
