"""The CONFIG of `lstsd train`: a YAML file of settings, turned into flags, so that one parser checks both.

A value is passed on as it was typed (`no`, `2e-5`), a list as several values, a mapping as JSON; a key with null is
left out. The file is parsed into YAML's nodes, and these are checked before any value is built from them, so that no
file takes much time or memory.
"""

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable
from importlib.resources import files
from typing import Any

import yaml

_LARGEST_FILE = 100_000  # bytes
_MOST_VALUES = 10_000  # each use of an alias counts anew
_DEEPEST = 20
# A setting takes a date, "=" or "<<" as text.
_KINDS = ("map", "seq", "str", "null", "bool", "int", "float", "timestamp", "value", "merge")


class _Loader(yaml.SafeLoader):
    """Adds the numbers of YAML 1.2: by itself, PyYAML reads 2e-5 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint to append to an error message: " Did you mean ...?", or "" if no name is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def packaged_configs() -> list[str]:
    """The names of the configs that the package carries, one for each GLUE task."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (files(__package__) / "configs").iterdir())


def config_flags(config: str, names: Collection[str], lists: Collection[str]) -> list[str]:
    """The settings of a config as command-line flags.

    Args:
        config: The name of a packaged config (`mrpc`), or else the path of a YAML file (`./mrpc`, `mrpc.yaml`).
        names: The names of all settings.
        lists: The names of those that take several values.

    Raises:
        ValueError: there is no such file, it is not a YAML mapping, or it has a key that is not in `names`, a key
            twice, or a value that no flag can take.
    """
    text = _read(config)
    nodes = _Nodes(config)
    try:
        # Not libyaml's loader: deep nesting crashes it.
        settings = nodes.entries(yaml.compose(text, _Loader))
    except RecursionError:
        raise ValueError(f"{config}: nested too deeply: expected a YAML mapping of settings.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: not YAML: {error}") from error
    flags = []
    for key, node in settings.items():
        if key not in names:
            raise ValueError(f"{config}: unknown key {key!r}.{nearest(key, names)}")
        if isinstance(node, yaml.MappingNode):
            flags.append(f"--{key}={nodes.as_json(node)}")
        elif isinstance(node, yaml.SequenceNode):
            nodes.check_tag(node)
            values = [nodes.typed(entry) for entry in node.value]
            if key not in lists and len(values) != 1:
                raise nodes.error(node, f"expected one value for {key!r}, found a list of {len(values)}")
            if any(value.startswith("--") for value in values):
                raise nodes.error(node, f"expected values for {key!r} that do not begin with '--'")
            flags += [f"--{key}", *values]
        elif nodes.kind(node) != "null":
            flags.append(f"--{key}={nodes.typed(node)}")
    return flags


def _read(config: str) -> str:
    known = packaged_configs()
    if config in known:
        return (files(__package__) / "configs" / f"{config}.yaml").read_text(encoding="utf-8")
    try:
        with open(config, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(
            f"{config}: expected a YAML file to read the settings from: {error.strerror}. Or name a config that the "
            f"package carries: {', '.join(known)}.{nearest(config.lower(), known)}"
        ) from error
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"{config}: expected a YAML file of at most {_LARGEST_FILE:,} bytes, found more.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{config}: not YAML: {error}") from error


class _Nodes:
    """Reads the nodes of a config; its errors name the line of the node that is not as expected."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._values_left = _MOST_VALUES

    def error(self, node: yaml.Node, message: str) -> ValueError:
        return ValueError(f"{self._config}, line {node.start_mark.line + 1}: {message}.")

    def kind(self, node: yaml.Node) -> str:
        """The name of a node's type in YAML."""
        return node.tag.removeprefix("tag:yaml.org,2002:")

    def check_tag(self, node: yaml.Node) -> None:
        """Raises ValueError for a tag other than those of a list, mapping, text, number, truth value or null."""
        if self.kind(node) not in _KINDS:
            raise self.error(node, f"expected a value without a tag, found the tag {node.tag!r}")

    def entries(self, node: yaml.Node | None) -> dict[str, yaml.Node]:
        """The values of a mapping, by key."""
        if not isinstance(node, yaml.MappingNode):
            found = {"NoneType": "nothing", "SequenceNode": "a list"}.get(type(node).__name__, "one value")
            raise ValueError(f"{self._config}: expected a YAML mapping of settings, found {found}.")
        self.check_tag(node)
        entries: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        for key_node, value in node.value:
            key = self.typed(key_node)
            if key in entries:
                raise self.error(key_node, f"the key {key!r} a second time, after line {lines[key]}: expected it once")
            entries[key], lines[key] = value, key_node.start_mark.line + 1
        return entries

    def typed(self, node: yaml.Node) -> str:
        """A scalar as it was typed."""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "expected one value, found a list or a mapping")
        self.check_tag(node)
        return node.value

    def as_json(self, node: yaml.Node) -> str:
        """A mapping as JSON, with numbers, truth values and null as what they are."""
        return json.dumps(self._plain(node, _DEEPEST))

    def _plain(self, node: yaml.Node, levels: int) -> Any:
        self._values_left -= 1
        if not levels or self._values_left < 0:
            raise self.error(node, f"expected at most {_DEEPEST} levels and {_MOST_VALUES:,} values, found more")
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(value, levels - 1) for key, value in self.entries(node).items()}
        if isinstance(node, yaml.SequenceNode):
            self.check_tag(node)
            return [self._plain(value, levels - 1) for value in node.value]
        typed = self.typed(node)
        if self.kind(node) not in ("null", "bool", "int", "float"):
            return typed
        try:
            value = _Loader("").construct_object(node)
        except (ValueError, KeyError) as error:  # a tag that does not fit the text: !!int many, !!bool many
            raise self.error(node, f"{typed!r} is no {self.kind(node)}") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(node, f"expected a finite number, found {typed}")
        return value
