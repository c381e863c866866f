"""The commands behind `victor-jax COMMAND`, one file each."""

import importlib
import os
import sys

from victor_jax.errors import exit_status

# Command -> the first line of its help. Its module has the same name and a function `main(arguments)`.
COMMANDS = {
    "convert": "convert a checkpoint from one format to another",
    "check-data": "walk a data set without training: counts, lengths, rows that cannot be used",
    "pack-data": "write a data set as a few large files, for buckets and pods",
    "plan-pod": "compile training or answering for TPUs or GPUs, without any: does it fit, how long does it take",
    "search-layer": "find the layer at which the visual tokens can leave",
    "train-policy": "teach a method to choose, for each question, how much of the image it needs",
    "heatmap": "draw what each register reads of an image",
    "score": "score what any tool predicted on a benchmark, without a model",
}
OF_A_RECIPE = ("check-data", "plan-pod")  # their flags are those of a recipe, and a few more that the docstring names


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 where the command's answer is no, 2 where the user has something to mend."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    name, *rest = given
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    # Imported when chosen: a command brings along only what it needs.
    module = importlib.import_module(f"victor_jax.cli.{name.replace('-', '_')}")
    if name in OF_A_RECIPE:
        # A recipe imports its neighbours (configs.common); `python -m` puts this folder on the path, a script does not.
        sys.path.insert(0, os.getcwd())
        if {"-h", "--help"} & set(rest):
            print(module.__doc__)
            return 0
    return exit_status(lambda: module.main(rest))


def usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: victor-jax COMMAND [arguments]\n\n{listed}\n\nvictor-jax COMMAND --help says more."
