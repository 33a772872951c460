"""The planner of a study: decides which nodes run, in which order, and which as one program."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from ..runtime import checkpoint
from .nodes.base import Node


def part_of(nodes: Sequence[Node], part: int, parts: int) -> list[Node]:
    """Return the nodes of one part of a study that is divided into `parts` parts.

    `part` counts from 1 to `parts`. The nodes that are not analyses are divided. An analysis is
    included if the node that its `outcome_of` names is in the part. The nodes of a part are
    neighbours, so that few parts need the same victim.
    """
    models = [node for node in nodes if not node.analysis]
    own = models[(part - 1) * len(models) // parts : part * len(models) // parts]
    return own + [node for node in nodes if node.needs.get(node.outcome_of) in own]


def plan(nodes: Iterable[Node], *, together: bool, compute: bool = True) -> list[list[Node]]:
    """Sort a study's nodes into groups that run as one program, each after the groups it needs.

    Nodes that unfinished `nodes` need are added. With `together`, nodes of a kind with the same
    `group` form a group; without it, each node is a group. Without `compute` only analyses are
    computed, and so only their needs are added.
    """
    groups: dict[Hashable, list[Node]] = {}
    for node in _wanted(nodes, compute).values():
        alone = node.group is None or not together
        key = node.name if alone else (node.kind, node.group)
        groups.setdefault(key, []).append(node)
    return _sorted(list(groups.values()))


def _wanted(nodes: Iterable[Node], compute: bool) -> dict[str, Node]:
    """Return `nodes` and all nodes that they need to run, by name, with needed nodes first."""
    wanted: dict[str, Node] = {}

    def want(node: Node) -> None:
        if node.name in wanted:
            return
        begins = node.analysis or (compute and not checkpoint.exists(node.folder / "model"))
        for name, needed in node.needs.items():
            if begins or name in node.read_again:
                want(needed)
        wanted.setdefault(node.name, node)

    for node in nodes:
        want(node)
    return wanted


def _sorted(groups: list[list[Node]]) -> list[list[Node]]:
    """Sort groups of nodes so that each group comes after the groups that it needs."""
    planned = {node.name for group in groups for node in group}
    done: set[str] = set()
    ordered = []
    while groups:
        ready = next(group for group in groups if _needs(group) & planned <= done)
        groups.remove(ready)
        ordered.append(ready)
        done |= {node.name for node in ready}
    return ordered


def _needs(group: Sequence[Node]) -> set[str]:
    return {needed.name for node in group for needed in node.needs.values()}
