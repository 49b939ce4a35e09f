"""What the plugin writes on the Node of a real kubelet: labels of discovery, taints and the fault it starts with."""

from __future__ import annotations

from collections.abc import Callable

from retinue.api.labels import FAULT
from retinue_emulator.inventory import NodeFacts
from retinue_emulator.inventory.nodelabels import ARCH, HOSTNAME, OS
from retinue_emulator.nodeplugin.apiserver import MERGE_PATCH, ApiError, ApiServer, JsonObject
from retinue_emulator.nodeplugin.nodeobject import EMULATED, INVENTORY, taint_object

FIELD_MANAGER = "retinue-kubelet-plugin"
APPLY_PATCH = "application/apply-patch+yaml"
STARTING_FAULT = "retinue.dev/starting-fault"
"""Annotation that remembers which fault of the inventory was put on the Node, so that removing it lasts."""

# The kubelet's own, and true: pods are pulled and run for the machine that there is.
_OF_THE_KUBELET = frozenset({HOSTNAME, ARCH, OS})
_ATTEMPTS = 5


def discovery_labels(facts: NodeFacts, inventory: str) -> dict[str, str]:
    """Labels that feature discovery and topology sources would write, without those of the kubelet."""
    own = {key: value for key, value in facts.labels.items() if key not in _OF_THE_KUBELET}
    return {**own, EMULATED: "true", INVENTORY: inventory}


async def mark_node(api: ApiServer, facts: NodeFacts, inventory: str) -> JsonObject:
    """Applies labels (with a field manager of their own), adds missing taints, puts a new starting fault; the Node.

    Raises:
        ApiError: the node does not exist, or the plugin may not write it.
    """
    path = f"/api/v1/nodes/{facts.name}"
    node = await api.get(path)
    await _apply(api, facts.name, discovery_labels(facts, inventory), {STARTING_FAULT: facts.fault or ""})
    known = node["metadata"].get("annotations", {}).get(STARTING_FAULT, "")
    if facts.fault and facts.fault != known:
        await api.patch(path, {"metadata": {"annotations": {FAULT: facts.fault}}}, content_type=MERGE_PATCH)
    await _add_taints(api, facts)
    return await api.get(path)


async def unmark_node(api: ApiServer, facts: NodeFacts) -> None:
    """Takes back labels, annotations and taints; what others wrote stays, a fault of theirs too."""
    path = f"/api/v1/nodes/{facts.name}"
    found = (await api.get(path))["metadata"].get("annotations", {}).get(FAULT)
    if found is not None and found == facts.fault:
        await api.patch(path, {"metadata": {"annotations": {FAULT: None}}}, content_type=MERGE_PATCH)
    await _apply(api, facts.name, {}, {})
    own = {(taint.key, taint.effect) for taint in facts.taints}
    await _edit_taints(api, facts.name, lambda taints: [t for t in taints if (t["key"], t["effect"]) not in own])


async def _apply(api: ApiServer, name: str, labels: dict[str, str], annotations: dict[str, str]) -> None:
    # Applying without a field gives it up, and the API server removes what nobody else owns.
    metadata = {"name": name, "labels": labels, "annotations": annotations}
    await api.request(
        "PATCH",
        f"/api/v1/nodes/{name}",
        body={"apiVersion": "v1", "kind": "Node", "metadata": metadata},
        params={"fieldManager": FIELD_MANAGER, "force": "true"},
        content_type=APPLY_PATCH,
    )


async def _add_taints(api: ApiServer, facts: NodeFacts) -> None:
    own = [taint_object(taint) for taint in facts.taints]
    if own:
        keys = {(taint["key"], taint["effect"]) for taint in own}
        await _edit_taints(
            api, facts.name, lambda taints: [*(t for t in taints if (t["key"], t["effect"]) not in keys), *own]
        )


async def _edit_taints(api: ApiServer, name: str, edit: Callable[[list[JsonObject]], list[JsonObject]]) -> None:
    """Replaces the list, which the API knows only as a whole; somebody else's write in between makes it start over."""
    path = f"/api/v1/nodes/{name}"
    for attempt in range(_ATTEMPTS):
        node = await api.get(path)
        before = node["spec"].get("taints", [])
        after = edit(before)
        if sorted(before, key=str) == sorted(after, key=str):
            return
        body = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}, "spec": {"taints": after}}
        try:
            await api.patch(path, body, content_type=MERGE_PATCH)
        except ApiError as error:
            if not error.conflict or attempt == _ATTEMPTS - 1:
                raise
        else:
            return
