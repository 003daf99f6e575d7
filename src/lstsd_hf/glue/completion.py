"""Scripts that make a shell complete the commands, flags, values and files of `lstsd`."""

import argparse
from collections.abc import Mapping

import shtab

from .arguments import flag_parser

# An argument whose name ends in one of these is a file or folder.
_PATHS = ("_dir", "_file", "path", "run", "dataset", "decisions", "output")


def script(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], train: str, shell: str
) -> str:
    """The completion script for a shell.

    Args:
        parser: The parser of `lstsd`; it is changed.
        commands: The parsers of its commands, by name; a command may have several names.
        train: The name of the command that takes the training flags.
        shell: "bash", "zsh" or "tcsh".
    """
    for action in flag_parser()[0]._actions:
        commands[train]._add_action(action)
    for command in {id(found): found for found in commands.values()}.values():
        for action in command._actions:
            if len(action.option_strings) > 1:  # keeps the spelling that the documentation uses
                action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
            if action.dest.endswith(_PATHS) and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
