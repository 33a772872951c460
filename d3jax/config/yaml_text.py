"""A strict reader of the YAML text of configs and command-line overrides.

It makes plain data only, and describes every mistake in one line.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..core.errors import ConfigError

MOST_NODES = 100_000
"""The largest number of values in a text; a value repeated by an alias counts each time."""
LARGEST = 2**63
"""Whole numbers must be smaller than this in absolute value."""


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number and rejects duplicate keys and huge numbers."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"
        own = [key for key, _ in node.value if key.tag != merge]
        keys = [self.construct_object(key, deep=True) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                again = [one for one, found in zip(own, keys, strict=True) if found == key][1]
                raise _problem(f"the key {key!r} appears twice", again)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        too_long = len(node.value) > 100  # Python refuses to convert very long ones
        value = LARGEST if too_long else self.construct_yaml_int(node)
        if abs(value) >= LARGEST:
            raise _problem(f"the number {node.value[:20]}… is too large", node)
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


def _problem(words: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=words, problem_mark=node.start_mark)


def parse_yaml(text: str, origin: str) -> Any:
    """Return the plain data that a YAML text describes, or None for an empty text.

    Raises a `ConfigError` that begins with `origin` and the line number.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_NODES:
            raise _problem(f"its aliases expand it to more than {MOST_NODES} values", node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{origin}: not YAML: it is nested too deep") from error
    # The constructors of numbers and dates raise the errors of int() and date().
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        where = f"{origin}:{mark.line + 1}" if mark else origin
        if isinstance(error, AttributeError):  # raised in PyYAML for a text that is no date
            problem = "a value is not what its tag says"
        words = " ".join(str(problem or error).split())[:200]
        raise ConfigError(f"{where}: not YAML: {words}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values that a YAML node makes, counting repeats by aliases.

    Raises `MarkedYAMLError` if an alias inside the node refers to the node itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise _problem("an alias appears inside the value that it repeats", node)
    if id(node) not in known:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
