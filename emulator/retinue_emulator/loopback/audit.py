"""Who wrote what: the audit policy that records every write, and a reader of the log it produces."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

WRITE_VERBS = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True)
class AuditEvent:
    """One finished write request as the API server recorded it.

    `time` is RFC 3339 with microseconds; `code` the HTTP status; `field_manager` is empty when the client named none;
    `user` is the authenticated user, for a service account `system:serviceaccount:NAMESPACE:NAME`.
    """

    time: str
    user: str
    user_agent: str
    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    field_manager: str
    code: int


def render_policy() -> str:
    """An audit policy that records metadata of each write once, at its end, and nothing else."""
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{"level": "Metadata", "verbs": list(WRITE_VERBS)}, {"level": "None"}],
        },
        sort_keys=False,
    )


def read_events(log: Path) -> Iterator[AuditEvent]:
    """The events in the log so far, oldest first; none while there is no log. A half-written line is left for later."""
    try:
        lines = log.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:
        if line.strip():
            yield parse_event(json.loads(line))


def parse_event(record: dict[str, Any]) -> AuditEvent:
    """One audit.k8s.io/v1 Event; what the record does not have becomes empty, a missing status 0."""
    target = record.get("objectRef") or {}
    query = parse_qs(urlsplit(record.get("requestURI", "")).query)
    return AuditEvent(
        time=record.get("requestReceivedTimestamp", ""),
        user=(record.get("user") or {}).get("username", ""),
        user_agent=record.get("userAgent", ""),
        verb=record.get("verb", ""),
        group=target.get("apiGroup", ""),
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        field_manager=query.get("fieldManager", [""])[0],
        code=(record.get("responseStatus") or {}).get("code", 0),
    )
