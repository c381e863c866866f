"""The command line of everything that takes a recipe: --config=FILE[:args] --config.some.key=value."""

import re
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

from victor_jax.errors import UserError
from victor_jax.training.settings import flat, nearest_key

# What Python and absl say of a wrong value -> what was wanted.
WANTED = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
}


def parse(
    name: str, define: Callable[[flags.FlagValues], None], arguments: list[str] | None = None
) -> flags.FlagValues:
    """The flags of the arguments (of sys.argv where none are given), `config` among them; one error for whatever is
    wrong with them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a recipe, FILE[:args]", flag_values=given, sys_argv=arguments)
    define(given)
    try:
        rest = given([name, *arguments])[1:]
        if given["config"].value is not None:
            given["config"].value.to_dict()  # fails where the file could not be read
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{_suggest(error.flagname, given)}") from None
    except flags.IllegalFlagValueError as error:
        raise UserError(_illegal(error)) from None
    except OSError as error:
        raise UserError(f"the config file cannot be read: {_last_line(error)}") from None
    except Exception as error:  # of absl, of ml_collections, and whatever a user's recipe raises
        _check_keys(arguments)
        raise UserError(_last_line(error)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    if given["config"].value is None:
        raise UserError("--config=FILE[:args] is missing: configs/ holds the recipes")
    return given


def _suggest(flag: str, given: flags.FlagValues) -> str:
    return nearest_key(flag, [name for name in given if not name.startswith("config.")])


def _illegal(error: flags.IllegalFlagValueError) -> str:
    """`flag --config.seed=x: invalid literal for int() with base 10: 'x'` in the words of the settings."""
    message = str(error).removeprefix("flag ")
    flag = message.split(": ", 1)[0]
    for told, wanted in WANTED.items():
        if told in message and "\n" not in message:  # else a recipe's own error, with its traceback
            return f"{flag.removeprefix('--') if flag.startswith('--config.') else flag} must be {wanted}"
    return _last_line(error)


def _check_keys(arguments: list[str]) -> None:
    """An override of a key that the recipe does not have."""
    recipe = [argument for argument in arguments if argument.startswith("--config=")]
    alone = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=alone, sys_argv=[])
    try:
        alone(["", *recipe])
        config: Any = alone["config"].value
        known = list(flat(config.to_dict()))
    except Exception:  # the recipe itself fails: it is no matter of keys
        return
    for argument in arguments:
        key = argument.removeprefix("--config.").partition("=")[0]
        if argument.startswith("--config.") and key not in known:
            raise UserError(f"unknown config key config.{key}{nearest_key(key, known)}")


def _last_line(error: Exception) -> str:
    """Without the name of the exception, which a traceback within the text brings along."""
    return re.sub(r"^\w+(Error|Exception): ", "", str(error).strip().splitlines()[-1].strip())
