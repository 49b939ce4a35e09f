"""Placement against an oracle: it finds a domain exactly when one exists, the best one, and otherwise says why not."""

from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.capacity import free_capacity
from retinue.placement.pack import NoFit, Placement, Request, instances_that_fit, place, place_in, placement_of
from retinue.placement.room import Room

from .fakeworld import CLIQUE, GPU, RACK, TOPOLOGY_DOMAIN, gpu_class, gpu_node, tainted

FAST = gpu_class("fast")


def request(pods: int = 1, gpus: int = 4, **more: Any) -> Request:
    fields = {"pack": "nvlinkDomain", "required": True, "spread": None, "occupied": {}, **more}
    return Request(pods=pods, requests={GPU: gpus}, **fields)


def held(node: str | None, gpus: int, domain: str | None = None, class_: str = "fast", name: str = "other") -> Hold:
    return Hold(name, node, class_, domain, {GPU: gpus})


def oracle(wish: Request, nodes: list[Node], used: dict[str, int]) -> dict[str, int]:
    """Domains that can hold the request, with the devices that are free in them: by trying every assignment."""
    fitting: dict[str, int] = {}
    gpus = wish.requests[GPU]
    cliques = {node.labels[CLIQUE] for node in nodes if CLIQUE in node.labels}
    for clique in cliques:
        members = [node for node in nodes if node.labels.get(CLIQUE) == clique and node.usable]
        for chosen in combinations_with_replacement(members, wish.pods):
            taken = {node.name: gpus * chosen.count(node) for node in members}
            if all(used.get(n.name, 0) + taken[n.name] <= n.allocatable[GPU] for n in members):
                fitting[clique] = sum(n.allocatable[GPU] - used.get(n.name, 0) for n in members)
                break
    return fitting


NODES = st.lists(
    st.tuples(st.sampled_from(["c0", "c1", "c2", None]), st.integers(0, 4), st.booleans(), st.integers(0, 3)),
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(rows=NODES, pods=st.integers(1, 3), gpus=st.integers(1, 4))
def test_a_domain_is_found_exactly_when_one_exists_and_it_is_the_tightest(
    rows: list[tuple[str | None, int, bool, int]], pods: int, gpus: int
) -> None:
    nodes = [
        replace(gpu_node(f"n{i}", clique=clique, gpus=total), ready=ready)
        for i, (clique, total, ready, _) in enumerate(rows)
    ]
    used = {f"n{i}": min(total, taken) for i, (_, total, _, taken) in enumerate(rows)}
    holds = [held(name, amount) for name, amount in used.items() if amount]
    found = place(request(pods, gpus), FAST, nodes, holds)
    fitting = oracle(request(pods, gpus), nodes, used)
    if not fitting:
        assert isinstance(found, NoFit)
        assert f"asked for {'1 pod' if pods == 1 else f'{pods} pods'} with {gpus} {GPU} each" in found.message
        return
    assert isinstance(found, Placement)
    assert found.domain_label == CLIQUE
    assert found.domain == min(fitting, key=lambda clique: (fitting[clique], clique))


@settings(max_examples=200, deadline=None)
@given(rows=NODES, pods=st.integers(1, 3), gpus=st.integers(1, 4))
def test_as_many_instances_as_are_said_to_fit_can_be_placed_one_after_the_other(
    rows: list[tuple[str | None, int, bool, int]], pods: int, gpus: int
) -> None:
    nodes = [gpu_node(f"n{i}", clique=clique, gpus=total) for i, (clique, total, _, _) in enumerate(rows)]
    wish = request(pods, gpus)
    holds: list[Hold] = []
    for round_ in range(instances_that_fit(wish, FAST, nodes, ())):
        found = place(wish, FAST, nodes, holds)
        assert isinstance(found, Placement), f"instance {round_} does not fit"
        holds.extend(held(None, gpus, found.domain, name=f"{round_}-{rank}") for rank in range(pods))
    assert isinstance(place(wish, FAST, nodes, holds), NoFit)


@settings(max_examples=200, deadline=None)
@given(rows=NODES, pods=st.integers(1, 2), gpus=st.integers(1, 4), packed=st.booleans())
def test_a_room_that_is_taken_step_by_step_places_as_a_fresh_look_at_all_holds_does(
    rows: list[tuple[str | None, int, bool, int]], pods: int, gpus: int, packed: bool
) -> None:
    nodes = [gpu_node(f"n{i}", clique=clique, gpus=total) for i, (clique, total, _, _) in enumerate(rows)]
    wish = request(pods, gpus, pack="nvlinkDomain" if packed or pods > 1 else None)
    holds = [held(f"n{i}", min(total, taken)) for i, (_, total, _, taken) in enumerate(rows) if min(total, taken)]
    room = Room(FAST, nodes, holds)
    for _ in range(8):
        found = place_in(room, wish)
        assert found == place(wish, FAST, nodes, holds)
        if isinstance(found, NoFit):
            break
        room.take(pods, wish.requests, found.domain)
        holds.extend(held(None, gpus, found.domain) for _ in range(pods))


def test_two_pools_that_plan_one_after_the_other_never_get_the_same_devices() -> None:
    nodes = [gpu_node("a", clique="c0"), gpu_node("b", clique="c1")]
    first = place(request(), FAST, nodes, ())
    assert isinstance(first, Placement)
    promised = [held(None, 4, first.domain, name="first")]
    second = place(request(), FAST, nodes, promised)
    assert isinstance(second, Placement)
    assert first.domain != second.domain
    assert isinstance(place(request(), FAST, nodes, [*promised, held(None, 4, second.domain)]), NoFit)


def test_a_promise_on_another_class_takes_nothing_from_this_one() -> None:
    nodes = [gpu_node("a", clique="c0")]
    assert isinstance(place(request(), FAST, nodes, [held(None, 4, "c0", class_="slow")]), Placement)


def test_a_pod_of_any_class_takes_the_devices_of_the_node_on_which_it_runs() -> None:
    nodes = [gpu_node("a", clique="c0")]
    assert isinstance(place(request(), FAST, nodes, [held("a", 1, class_="")]), NoFit)


def test_a_promise_is_charged_to_the_fullest_node_that_can_keep_it() -> None:
    nodes = [gpu_node("a", clique="c0"), gpu_node("b", clique="c0")]
    free = free_capacity(FAST, nodes, [held("b", 2), held(None, 2, "c0", name="promised")])
    assert {member.node.name: member.free[GPU] for member in free} == {"a": 4, "b": 0}


@pytest.mark.parametrize(
    ("why", "node"),
    [
        ("not ready", replace(gpu_node("a", clique="c0"), ready=False)),
        ("cordoned", replace(gpu_node("a", clique="c0"), schedulable=False)),
        ("tainted", tainted(gpu_node("a", clique="c0"), "nvidia.com/gpu")),
    ],
)
def test_a_node_that_pods_cannot_use_is_no_room(why: str, node: Node) -> None:
    found = place(request(), FAST, [node], ())
    assert isinstance(found, NoFit), why
    assert "0 of 1 nodes are usable" in found.message


def test_a_tolerated_taint_is_room() -> None:
    class_ = gpu_class("fast", tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])
    node = tainted(gpu_node("a", clique="c0"), "nvidia.com/gpu")
    assert isinstance(place(request(), class_, [node], ()), Placement)


def test_a_soft_taint_keeps_nobody_away() -> None:
    node = tainted(gpu_node("a", clique="c0"), "busy", "PreferNoSchedule")
    assert isinstance(place(request(), FAST, [node], ()), Placement)


def test_instances_go_where_the_pool_has_fewest_even_if_another_domain_is_tighter() -> None:
    nodes = [gpu_node("a", rack="r0", clique="c0"), gpu_node("b", rack="r1", clique="c1")]
    tight = [held("a", 2)]
    alone = place(request(gpus=1, spread="rack"), FAST, nodes, tight)
    crowded = place(request(gpus=1, spread="rack", occupied={"r0": 1}), FAST, nodes, tight)
    assert isinstance(alone, Placement)
    assert isinstance(crowded, Placement)
    assert (alone.domain, crowded.domain) == ("c0", "c1")


def test_spread_without_pack_chooses_a_domain_of_the_spread_level() -> None:
    nodes = [gpu_node("a", rack="r0"), gpu_node("b", rack="r1")]
    found = place(request(pack=None, spread="rack", occupied={"r0": 2}), FAST, nodes, ())
    assert found == Placement("fast", "r1", RACK)


def test_without_pack_a_single_pod_may_go_anywhere() -> None:
    assert place(request(pack=None), FAST, [gpu_node("a")], ()) == Placement("fast", None, None)


def test_several_pods_are_packed_at_the_nearest_level_unless_told_otherwise() -> None:
    nodes = [gpu_node("a", clique="c0"), gpu_node("b", clique="c1"), gpu_node("c", clique="c1")]
    assert place(request(2, pack=None), FAST, nodes, ()) == Placement("fast", "c1", CLIQUE)


def test_preferred_packing_packs_if_it_can_and_goes_anywhere_if_not() -> None:
    apart = [gpu_node("a", clique="c0"), gpu_node("b", clique="c1")]
    together = [*apart, gpu_node("c", clique="c1")]
    wish = request(2, required=False)
    assert place(wish, FAST, together, ()) == Placement("fast", "c1", CLIQUE)
    assert place(wish, FAST, apart, ()) == Placement("fast", None, None)
    assert isinstance(place(replace(wish, pods=3), FAST, apart, ()), NoFit)


def with_domain(node: Node, domain: str) -> Node:
    return replace(node, labels={**node.labels, TOPOLOGY_DOMAIN: domain})


def test_the_first_key_that_a_node_carries_names_its_domain() -> None:
    node = with_domain(gpu_node("a", clique="c0"), "other")
    assert place(request(), FAST, [node], ()) == Placement("fast", "c0", CLIQUE)
    later = with_domain(gpu_node("b"), "d0")
    assert place(request(), FAST, [later], ()) == Placement("fast", "d0", TOPOLOGY_DOMAIN, (CLIQUE,))


def test_equal_names_under_different_keys_are_different_domains() -> None:
    nodes = [gpu_node("a", clique="x"), with_domain(gpu_node("b"), "x")]
    assert isinstance(place(request(2), FAST, nodes, ()), NoFit)


def test_a_node_without_any_label_of_the_level_cannot_be_chosen_and_the_message_says_so() -> None:
    found = place(request(), FAST, [gpu_node("a")], ())
    assert isinstance(found, NoFit)
    assert f"no usable node carries a label of level nvlinkDomain ({CLIQUE}, {TOPOLOGY_DOMAIN})" in found.message


def message(wish: Request, nodes: list[Node], holds: list[Hold], class_: ResolvedClass = FAST) -> str:
    found = place(wish, class_, nodes, holds)
    assert isinstance(found, NoFit)
    assert found.node_class == class_.name
    return found.message


def test_no_fit_says_what_was_asked_what_is_free_and_the_nearest_miss() -> None:
    nodes = [gpu_node("a", clique="c0"), gpu_node("b", clique="c1"), gpu_node("c", clique="c1")]
    assert message(request(2), nodes, [held("c", 1)]) == (
        "asked for 2 pods with 4 nvidia.com/gpu each on class fast: 3 of 3 nodes are usable; "
        "11 of their 12 nvidia.com/gpu are free; nearest miss: nvlinkDomain c1 has room for 1 of 2 pods"
    )


def test_no_fit_without_packing_names_the_node_that_comes_nearest_and_what_it_lacks() -> None:
    wish = Request(1, {GPU: 2, "memory": 2**41}, None, True, None, {})
    assert message(wish, [gpu_node("a"), gpu_node("b", gpus=1)], []) == (
        "asked for 1 pod with 2Ti memory and 2 nvidia.com/gpu each on class fast: 2 of 2 nodes are usable; "
        "5 of their 5 nvidia.com/gpu are free; nearest miss: node a has 1Ti of 2Ti memory"
    )


def test_no_fit_on_a_class_without_nodes_names_the_labels_that_are_missing() -> None:
    assert message(request(), [gpu_node("a", product="other")], []) == (
        "asked for 1 pod with 4 nvidia.com/gpu each on class fast: no node has the labels gpu=h"
    )


def test_an_unknown_level_is_answered_with_those_that_the_class_has() -> None:
    assert "has no topology level 'pod'; it has nvlinkDomain, rack" in message(request(pack="pod"), [], [])
    assert instances_that_fit(request(pack="pod"), FAST, [gpu_node("a", clique="c0")], ()) == 0


def test_a_domain_that_was_chosen_is_found_again_and_one_that_is_gone_is_not() -> None:
    nodes = [gpu_node("a", clique="c0"), with_domain(gpu_node("b"), "d0")]
    for name in ("c0", "d0"):
        holds = [held(node.name, 4) for node in nodes if name not in node.labels.values()]
        chosen = place(request(), FAST, nodes, holds)
        assert isinstance(chosen, Placement)
        assert chosen.domain == name
        assert placement_of(name, request(), FAST, nodes) == chosen
    assert placement_of("gone", request(), FAST, nodes) is None


def test_an_instance_over_nodes_that_names_no_level_gets_the_nearest_that_is_wide_enough() -> None:
    narrow = [gpu_node("a", clique="c0", gpus=4), gpu_node("b", clique="c1", gpus=4)]
    wide = [*narrow, gpu_node("c", clique="c1", gpus=4)]
    across = place(request(pods=2, gpus=4, pack=None), FAST, narrow, ())
    within = place(request(pods=2, gpus=4, pack=None), FAST, wide, ())
    assert isinstance(across, Placement)
    assert isinstance(within, Placement)
    assert (across.domain, within.domain) == ("r0", "c1")


def test_a_level_that_is_too_narrow_for_the_instance_names_the_wider_ones() -> None:
    nodes = [gpu_node("a", clique="c0", gpus=4), gpu_node("b", clique="c1", gpus=4)]
    found = place(request(pods=2, gpus=4, pack="nvlinkDomain"), FAST, nodes, ())
    assert isinstance(found, NoFit)
    assert "no nvlinkDomain has more than 1 nodes: set spec.topology.pack to " in found.message


def test_a_domain_without_any_room_says_what_its_nearest_node_lacks() -> None:
    nodes = [gpu_node("a", clique="c0", gpus=4)]
    found = place(request(pods=1, gpus=4), FAST, nodes, [held("a", 3)])
    assert isinstance(found, NoFit)
    assert found.message.endswith("nvlinkDomain c0 has room for 0 of 1 pods: node a has 1 of 4 nvidia.com/gpu")
