"""The command line of everything that takes a recipe: --config=FILE[:args] --config.some.key=value."""

import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from victor_jax.errors import UserError
from victor_jax.training.settings import flat, nearest_key


def parse(name: str, define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """The flags of sys.argv, `config` among them; one error for whatever is wrong with them."""
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a recipe, FILE[:args]", flag_values=given)
    define(given)
    try:
        rest = given([name, *sys.argv[1:]])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{_suggest(error.flagname, given)}") from None
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(str(error).strip().splitlines()[-1]) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    if given["config"].value is None:
        raise UserError("--config=FILE[:args] is missing: configs/ holds the recipes")
    return given


def _suggest(flag: str, given: flags.FlagValues) -> str:
    config = given["config"].value
    if flag.startswith("config.") and config is not None:
        return nearest_key(flag.removeprefix("config."), list(flat(config.to_dict())))
    return nearest_key(flag, [name for name in given if not name.startswith("config.")])


def run(command: Callable[[], Any]) -> int:
    """The exit status of a command: a user's mistake is one line on stderr, and 2."""
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
