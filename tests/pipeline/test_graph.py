import pytest

from bitkd.errors import InputError
from bitkd.files import digest
from bitkd.pipeline.graph import Node, fingerprints, order


def graph(**upstreams):
    return {
        name: Node(name, {f"role{i}": u for i, u in enumerate(ups)}, {"kind": name}) for name, ups in upstreams.items()
    }


def test_every_node_stands_behind_its_upstreams():
    nodes = graph(last=["middle", "first"], middle=["first"], first=["source"])
    assert order(nodes, {"source"}) == ["first", "middle", "last"]


def test_order_is_as_written_where_it_is_free():
    assert order(graph(b=["source"], a=["source"]), {"source"}) == ["b", "a"]


def test_a_cycle_is_named():
    with pytest.raises(InputError, match=r"cycle: (a -> b -> a|b -> a -> b)"):
        order(graph(a=["b"], b=["a"], c=["source"]), {"source"})


def test_an_unknown_upstream_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"stages\.b\.role0=techer is no stage and no source; did you mean teacher\?"):
        order(graph(teacher=["source"], b=["techer"]), {"source"})


def test_a_change_reaches_exactly_what_hangs_on_it():
    nodes = graph(a=["source"], b=["a"], c=["source"], d=["b", "c"])
    before = fingerprints(nodes, {"source": "1"})
    nodes["b"] = Node("b", nodes["b"].upstream, {"kind": "b", "lr": 1})
    after = fingerprints(nodes, {"source": "1"})
    assert {name for name in nodes if before[name] != after[name]} == {"b", "d"}


def test_a_source_reaches_everything_and_names_reach_nothing():
    first = fingerprints({"a": Node("a", {"student": "source"}, {"x": 1})}, {"source": "1"})["a"]
    renamed = fingerprints({"z": Node("z", {"student": "source"}, {"x": 1})}, {"source": "1"})["z"]
    changed = fingerprints({"a": Node("a", {"student": "source"}, {"x": 1})}, {"source": "2"})["a"]
    assert first == renamed != changed


def test_a_digest_does_not_depend_on_key_order():
    assert (
        digest({"a": 1, "b": [2.0, None]}) == digest({"b": [2.0, None], "a": 1}) != digest({"a": 1, "b": [2.5, None]})
    )
