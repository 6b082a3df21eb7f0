"""The stage graph as a data structure: order, upstreams, fingerprints. It imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitkd.errors import InputError, nearest
from bitkd.files import digest


@dataclass(frozen=True)
class Node:
    """A stage: what it reads (`upstream`: role -> node or source) and what changes its numbers (`identity`)."""

    name: str
    upstream: Mapping[str, str]
    identity: Mapping[str, Any] = field(default_factory=dict)


def order(nodes: Mapping[str, Node], sources: set[str]) -> list[str]:
    """Names in an order in which every node comes after its upstreams; otherwise in the order of `nodes`.

    Raises InputError if an upstream is neither a node nor a source, or if there is a cycle.
    """
    for node in nodes.values():
        for role, name in node.upstream.items():
            if name not in nodes and name not in sources:
                hint = nearest(name, [*nodes, *sorted(sources)])
                raise InputError(f"stages.{node.name}.{role}={name} is no stage and no source; {hint}")
    ordered: list[str] = []
    waiting = list(nodes)
    while waiting:
        ready = next(
            (n for n in waiting if all(u in ordered or u in sources for u in nodes[n].upstream.values())), None
        )
        if ready is None:
            raise InputError(
                f"the graph has a cycle: {' -> '.join(_cycle(nodes, waiting))}; every stage's student and teacher must "
                "come from an earlier stage or a source"
            )
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _cycle(nodes: Mapping[str, Node], waiting: list[str]) -> list[str]:
    path = [waiting[0]]
    while True:
        following = next(u for u in nodes[path[-1]].upstream.values() if u in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def fingerprints(nodes: Mapping[str, Node], sources: Mapping[str, str]) -> dict[str, str]:
    """Fingerprint of each node: its identity and, through its upstreams' fingerprints, all it descends from.

    sources: content hash of each source. Names of nodes do not count, so two pipelines share equal stages.
    """
    known = dict(sources)
    for name in order(nodes, set(sources)):
        node = nodes[name]
        inputs = {role: known[upstream] for role, upstream in node.upstream.items()}
        known[name] = digest({"identity": dict(node.identity), "inputs": inputs})
    return {name: known[name] for name in nodes}
