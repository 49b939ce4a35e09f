"""Service names on a machine without cluster DNS: what `<subdomain>.<namespace>.svc` stands for, read from the pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .containerstate import JsonObject


class ClusterNames:
    """Names of headless services and their pods, as cluster DNS would answer them.

    pods: all pods that are known now.
    """

    def __init__(self, pods: Callable[[], Iterable[JsonObject]]) -> None:
        self._pods = pods

    def resolve(self, host: str) -> tuple[str, ...]:
        """Addresses behind `<subdomain>.<namespace>.svc` (its ready pods) or `<hostname>.<subdomain>.<namespace>.svc`.

        What follows `svc` does not matter. Empty for a name that no pod answers to, and for everything else.
        """
        labels = host.split(".")
        if "svc" not in labels:
            return ()
        where = labels[: labels.index("svc")]
        found: list[str] = []
        for pod in self._pods():
            spec, metadata, status = pod["spec"], pod["metadata"], pod.get("status", {})
            address, subdomain = status.get("podIP"), spec.get("subdomain")
            if not address or not subdomain:
                continue
            service = [subdomain, metadata["namespace"]]
            if (where == service and _is_ready(status)) or where == [spec.get("hostname", metadata["name"]), *service]:
                found.append(address)
        return tuple(sorted(found))

    async def answer(self, host: str) -> Sequence[str]:
        """`resolve` in the form in which engines ask for the servers of a tier."""
        return self.resolve(host)


def _is_ready(status: JsonObject) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
