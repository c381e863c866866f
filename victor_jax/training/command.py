"""The command line of everything that takes a recipe: --config=FILE[:args] --config.some.key=value."""

import ast
import re
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from victor_jax.errors import UserError
from victor_jax.training.settings import TYPES, flat, nearest_key

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parse(
    name: str, define: Callable[[flags.FlagValues], None], arguments: list[str] | None = None
) -> flags.FlagValues:
    """The flags of the arguments (of sys.argv where none are given), `config` among them with its keys overridden; one
    error for whatever is wrong with them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a recipe, FILE[:args]", flag_values=given, sys_argv=[])
    define(given)
    try:
        rest = given([name, *(argument for argument in arguments if argument not in overrides)])[1:]
        config = given["config"].value
        known = flat(config.to_dict()) if config else {}  # to_dict fails where the file could not be read
    except Exception as error:  # of absl, of ml_collections, and whatever a user's recipe raises
        # Its last line; a traceback within the text brings the name of the exception along.
        raise UserError(re.sub(r"^\w+(Error|Exception): ", "", str(error).strip().splitlines()[-1].strip())) from None
    if config is None:
        raise UserError("--config=FILE[:args] is missing: configs/ holds the recipes")
    for override in overrides:
        _apply(override.removeprefix("--config."), config, known)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    return given


def _apply(override: str, config: ConfigDict, known: dict[str, Any]) -> None:
    """`key=text`, read as the type that the recipe has for the key."""
    key, equals, text = override.partition("=")
    if key not in known:
        raise UserError(f"unknown config key config.{key}{nearest_key(key, list(known))}")
    if not equals:
        raise UserError(f"--config.{key} is without a value: write --config.{key}=…")
    kind = type(known[key])
    try:
        value = BOOLEANS[text.lower()] if kind is bool else ast.literal_eval(text) if kind is tuple else kind(text)
    except (ValueError, KeyError, SyntaxError):
        raise UserError(f"config.{key}={text} must be {TYPES[kind]}") from None
    config.update_from_flattened_dict({key: value})
