"""What makes a shell complete the command `lstsd`: its commands, flags, values and files."""

import argparse
from collections.abc import Mapping

import shtab

from .arguments import flag_parser

# What the names of arguments that are files or folders end in.
_PATHS = ("_dir", "_file", "path", "run", "dataset", "decisions", "output")


def script(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], train: str, shell: str
) -> str:
    """The completion script for a shell.

    Args:
        parser: The whole command's; it is changed.
        commands: Its commands' by their names, of which several may be one command's.
        train: The one that takes the flags of a training.
        shell: "bash", "zsh" or "tcsh".
    """
    for action in flag_parser()[0]._actions:
        commands[train]._add_action(action)
    for command in {id(found): found for found in commands.values()}.values():
        for action in command._actions:
            if len(action.option_strings) > 1:  # of two spellings the one that the documentation uses
                action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
            if action.dest.endswith(_PATHS) and not action.choices:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
