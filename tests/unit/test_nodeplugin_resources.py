"""Addresses and devices: never given to two pods at a time."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from retinue_emulator.inventory import DeviceSlot
from retinue_emulator.nodeplugin.addresses import AddressError, AddressPool, claim_range
from retinue_emulator.nodeplugin.devices import (
    DeviceLedger,
    NotEnoughDevices,
    decode_assignment,
    encode_assignment,
    split_assignment,
)

GPU, LPU = "nvidia.com/gpu", "example.com/lpu"
RANGE = ipaddress.IPv4Network("127.200.0.0/24")


def slots(gpus: int = 8, lpus: int = 2) -> tuple[DeviceSlot, ...]:
    return (
        *(DeviceSlot(index, f"GPU-{index}", GPU) for index in range(gpus)),
        *(DeviceSlot(index, f"LPU-{index}", LPU) for index in range(lpus)),
    )


def test_pods_and_nodes_get_different_addresses_of_the_range() -> None:
    pool = AddressPool(RANGE)
    nodes = [pool.node_address() for _ in range(10)]
    pods = [pool.take() for _ in range(200)]
    assert len({*nodes, *pods}) == 210
    assert all(ipaddress.IPv4Address(address) in RANGE for address in nodes + pods)


def test_an_address_that_came_back_is_used_again_last() -> None:
    pool = AddressPool(RANGE)
    first = pool.take()
    pool.give_back(first)
    # 16 of 256 are for nodes and the last one is the broadcast address.
    others = [pool.take() for _ in range(238)]
    assert first not in others
    assert pool.take() == first


def test_an_exhausted_range_says_what_to_do() -> None:
    pool = AddressPool(RANGE)
    for _ in range(239):
        pool.take()
    with pytest.raises(AddressError, match="larger address range"):
        pool.take()


def test_addresses_of_an_earlier_run_are_not_given_out_soon() -> None:
    pool = AddressPool(RANGE)
    pool.skip("127.200.0.50")
    pool.skip("10.0.0.1")
    pool.skip("nonsense")
    assert pool.take() == "127.200.0.51"


@given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=600))
def test_no_address_is_ever_held_twice(steps: list[int | None]) -> None:
    pool = AddressPool(RANGE)
    held: list[str] = []
    for step in steps:
        if step is None and len(held) < 239:
            address = pool.take()
            assert address not in held
            held.append(address)
        elif step is not None and held:
            pool.give_back(held.pop(step % len(held)))


def test_two_plugins_get_different_ranges() -> None:
    first = claim_range(None)
    second = claim_range(None)
    try:
        assert not first.network.overlaps(second.network)
        with pytest.raises(AddressError, match="in use by another node plugin"):
            claim_range(str(first.network))
    finally:
        first.release()
        second.release()


def test_a_released_range_can_be_claimed_again() -> None:
    first = claim_range(None)
    network = str(first.network)
    first.release()
    again = claim_range(network)
    again.release()
    assert str(again.network) == network


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.0.0.0/16", "must lie in 127.0.0.0/8"), ("127.64.0.0/30", "at least 256"), ("x", "is not an address range")],
)
def test_a_useless_range_is_refused_with_an_example(text: str, expected: str) -> None:
    with pytest.raises(AddressError, match=expected) as raised:
        claim_range(text)
    assert "127.64.0.0/16" in str(raised.value)


def test_a_pod_gets_the_lowest_free_devices() -> None:
    ledger = DeviceLedger(slots())
    assert [d.index for d in ledger.assign("a", {GPU: 2}, {})[GPU]] == [0, 1]
    assert [d.index for d in ledger.assign("b", {GPU: 4}, {})[GPU]] == [2, 3, 4, 5]
    ledger.release("a")
    assert [d.index for d in ledger.assign("c", {GPU: 3}, {})[GPU]] == [0, 1, 6]


def test_a_restarted_plugin_gives_a_pod_its_old_devices() -> None:
    ledger = DeviceLedger(slots())
    assert [d.index for d in ledger.assign("a", {GPU: 2}, {GPU: (5, 3)})[GPU]] == [5, 3]


def test_remembered_devices_that_are_taken_are_not_shared() -> None:
    ledger = DeviceLedger(slots())
    ledger.assign("a", {GPU: 2}, {GPU: (0, 1)})
    assert [d.index for d in ledger.assign("b", {GPU: 2}, {GPU: (0, 1)})[GPU]] == [2, 3]


def test_unhealthy_devices_shrink_what_can_be_given_but_not_the_capacity() -> None:
    ledger = DeviceLedger(slots())
    ledger.set_unhealthy({3})
    assert ledger.capacity() == {GPU: 8, LPU: 2}
    assert ledger.allocatable() == {GPU: 7, LPU: 2}
    assert [d.index for d in ledger.assign("a", {GPU: 4}, {})[GPU]] == [0, 1, 2, 4]


def test_a_pod_that_cannot_have_all_its_devices_gets_none() -> None:
    ledger = DeviceLedger(slots())
    with pytest.raises(NotEnoughDevices, match="Requested: 3, Available: 2"):
        ledger.assign("a", {GPU: 8, LPU: 3}, {})
    assert ledger.holders() == {}


def test_an_assignment_survives_its_annotation() -> None:
    assignment = DeviceLedger(slots()).assign("a", {GPU: 3, LPU: 1}, {})
    assert decode_assignment(encode_assignment(assignment)) == {GPU: (0, 1, 2), LPU: (0,)}


@given(st.text())
def test_any_annotation_text_can_be_read(text: str) -> None:
    assert all(isinstance(indexes, tuple) for indexes in decode_assignment(text).values())


def test_devices_of_a_pod_are_divided_among_its_containers() -> None:
    assignment = DeviceLedger(slots()).assign("a", {GPU: 3}, {})
    split = split_assignment(assignment, {"one": {GPU: 2}, "none": {}, "two": {GPU: 1}})
    assert {name: [d.index for d in devices] for name, devices in split.items()} == {
        "one": [0, 1],
        "none": [],
        "two": [2],
    }


class DeviceMachine(RuleBasedStateMachine):
    """Pods come and go, devices break and heal, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = DeviceLedger(slots())
        self.given: dict[str, set[tuple[str, int]]] = {}

    @rule(
        uid=st.sampled_from("abcdefgh"),
        gpus=st.integers(0, 5),
        lpus=st.integers(0, 2),
        remembered=st.lists(st.integers(0, 9), max_size=5),
    )
    def assign(self, uid: str, gpus: int, lpus: int, remembered: list[int]) -> None:
        try:
            assignment = self.ledger.assign(uid, {GPU: gpus, LPU: lpus}, {GPU: tuple(remembered)})
        except NotEnoughDevices:
            return
        got = {(d.resource, d.index) for devices in assignment.values() for d in devices}
        if uid not in self.given:
            assert len(got) == gpus + lpus
        self.given[uid] = self.given.get(uid, set()) | got

    @rule(uid=st.sampled_from("abcdefgh"))
    def release(self, uid: str) -> None:
        self.ledger.release(uid)
        self.given.pop(uid, None)

    @rule(broken=st.sets(st.integers(0, 7)))
    def break_devices(self, broken: set[int]) -> None:
        self.ledger.set_unhealthy(broken)

    @invariant()
    def no_device_has_two_holders(self) -> None:
        everything = [key for keys in self.given.values() for key in keys]
        assert len(everything) == len(set(everything))

    @invariant()
    def the_ledger_says_what_it_gave(self) -> None:
        held = {uid: {(d.resource, d.index) for d in devices} for uid, devices in self.ledger.holders().items()}
        assert held == {uid: keys for uid, keys in self.given.items() if keys}


DeviceMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestDeviceMachine = DeviceMachine.TestCase
