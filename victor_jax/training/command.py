"""The command line of everything that takes a recipe: --config=FILE[:args] --config.some.key=value."""

import re
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
        if given["config"].value is not None:
            given["config"].value.to_dict()  # fails where the file could not be read
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{_suggest(error.flagname, given)}") from None
    except OSError as error:
        raise UserError(f"the config file cannot be read: {_last_line(error)}") from None
    except Exception as error:  # of absl, of ml_collections, and whatever a user's recipe raises
        _check_keys()
        raise UserError(_last_line(error)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    if given["config"].value is None:
        raise UserError("--config=FILE[:args] is missing: configs/ holds the recipes")
    return given


def _suggest(flag: str, given: flags.FlagValues) -> str:
    return nearest_key(flag, [name for name in given if not name.startswith("config.")])


def _check_keys() -> None:
    """An override of a key that the recipe does not have."""
    recipe = [argument for argument in sys.argv[1:] if argument.startswith("--config=")]
    alone = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=alone, sys_argv=[])
    try:
        alone(["", *recipe])
        config: Any = alone["config"].value
        known = list(flat(config.to_dict()))
    except Exception:  # the recipe itself fails: it is no matter of keys
        return
    for argument in sys.argv[1:]:
        key = argument.removeprefix("--config.").partition("=")[0]
        if argument.startswith("--config.") and key not in known:
            raise UserError(f"unknown config key config.{key}{nearest_key(key, known)}")


def _last_line(error: Exception) -> str:
    """Without the name of the exception, which a traceback within the text brings along."""
    return re.sub(r"^\w+(Error|Exception): ", "", str(error).strip().splitlines()[-1].strip())


def run(command: Callable[[], Any]) -> int:
    """The exit status of a command: a user's mistake is one line on stderr, and 2."""
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
