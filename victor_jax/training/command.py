"""The command line of everything that takes a recipe: --config=FILE[:args] --config.some.key=value."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from victor_jax.errors import UserError


def parse(
    name: str, define: Callable[[flags.FlagValues], None], arguments: list[str] | None = None
) -> flags.FlagValues:
    """The flags of the arguments (of sys.argv where none are given), `config` among them with its keys overridden; one
    error for whatever is wrong with them."""
    command = [name, *(sys.argv[1:] if arguments is None else arguments)]
    given = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a recipe, FILE[:args]", flag_values=given, sys_argv=command)
    define(given)
    try:
        with _neighbours(command):
            rest, config = given(command)[1:], given["config"].value
        is_given = bool(config and config.to_dict())  # which fails where the file could not be read
    except AttributeError as error:  # of a ConfigDict: the key, and the nearest one
        key = str(error).replace("\\n", ": ").replace("\\'", "").strip("'\"")
        raise UserError(f"no such config key or attribute: {key}") from None
    except Exception as error:  # of absl, of ml_collections, and whatever a user's recipe raises
        # Its last line; a traceback within the text brings the name of the exception along.
        raise UserError(re.sub(r"^\w+(Error|Exception): ", "", str(error).strip().splitlines()[-1].strip())) from None
    if not is_given:
        raise UserError("--config=FILE[:args] is missing: configs/ holds the recipes")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags begin with --")
    return given


@contextlib.contextmanager
def _neighbours(command: list[str]) -> Iterator[None]:
    """Recipes import each other by their folder's name (`configs.common`), wherever the command is given."""
    files = re.findall(r"^--?config[=\n]([^:\n]+)", "\n".join(command), re.MULTILINE)
    before = sys.path.copy()
    sys.path += [str(Path(file).resolve().parent.parent) for file in files]
    try:
        yield
    finally:
        sys.path[:] = before
