"""YAML texts of users, read strictly: no objects, no surprises, one line for whatever is wrong."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..core.errors import ConfigError

MOST_NODES = 100_000
"""Values that a text may have, those that an alias repeats counted each time."""
LARGEST = 2**63
"""Whole numbers are smaller."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        merge = "tag:yaml.org,2002:merge"
        own = [key for key, _ in node.value if key.tag != merge]
        keys = [self.construct_object(key, deep=True) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                raise _problem(f"the key {key!r} stands twice", node)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        too_long = len(node.value) > 100  # of which Python would not print all
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
    """Return plain data. Raises `ConfigError` that begins with `origin` and the line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_NODES:
            raise _problem(f"its aliases make more than {MOST_NODES} values of it", node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{origin}: not YAML: it is nested too deep") from error
    # Constructors of numbers and dates raise what int() and date() raise.
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        where = f"{origin}:{mark.line + 1}" if mark else origin
        if isinstance(error, AttributeError):  # PyYAML's own, of a text that is no date
            problem = "a value is not what its tag says"
        words = " ".join(str(problem or error).split())[:200]
        raise ConfigError(f"{where}: not YAML: {words}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node makes. Raises `MarkedYAMLError` where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise _problem("an alias stands inside of what it repeats", node)
    if id(node) not in known:
        known[id(node)] = 0
        parts = node.value if isinstance(node, yaml.SequenceNode) else sum(node.value, ())
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
