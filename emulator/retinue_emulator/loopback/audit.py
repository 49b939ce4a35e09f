"""Who asked for what: the audit policy that records writes and chosen accounts' reads, and a reader of its log."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

WRITE_VERBS = ("create", "update", "patch", "delete", "deletecollection")

_POD = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True)
class AuditEvent:
    """One request as the API server recorded it: at its end, or for a watch at its start.

    `time` is RFC 3339 with microseconds; `code` the HTTP status; `field_manager` is empty when the client named none;
    `user` is the authenticated user, for a service account `system:serviceaccount:NAMESPACE:NAME`, and `impersonated`
    the one in whose name that user asked, mostly empty. `decision` is the authorizer's, `allow` or `forbid`; `message`
    is the server's in case of an error. Requests of no resource (discovery, /version) have a `path` only. `pod` is the
    one that a service account's token was made for, empty if the token is bound to none.
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
    path: str = ""
    impersonated: str = ""
    decision: str = ""
    pod: str = ""
    message: str = ""


def render_policy(account_namespaces: Sequence[str] = ()) -> str:
    """An audit policy that records metadata of each write once, and also each read by certain service accounts.

    `account_namespaces` are those whose service accounts' reads are recorded. A watch is recorded when it has begun,
    since it may outlive the log; every other request at its end, so that nothing is recorded twice.
    """
    # An empty list of groups would mean everybody.
    reads = [
        rule
        for namespace in account_namespaces
        for rule in (
            _rule("ResponseComplete", userGroups=[f"system:serviceaccounts:{namespace}"], verbs=["watch"]),
            _rule("ResponseStarted", userGroups=[f"system:serviceaccounts:{namespace}"]),
        )
    ]
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [_rule("ResponseStarted", verbs=list(WRITE_VERBS)), *reads, {"level": "None"}],
        },
        sort_keys=False,
    )


def _rule(omitted_stage: str, **matching: list[str]) -> dict[str, object]:
    return {"level": "Metadata", "omitStages": [omitted_stage], **matching}


def read_events(log: Path, *, reads: bool = False) -> Iterator[AuditEvent]:
    """The writes in the log so far, with `reads` all requests, oldest first; none while there is no log.

    A half-written line is left for later.
    """
    try:
        lines = log.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:
        if line.strip():
            event = parse_event(json.loads(line))
            if reads or event.verb in WRITE_VERBS:
                yield event


def parse_event(record: dict[str, Any]) -> AuditEvent:
    """One audit.k8s.io/v1 Event; what the record does not have becomes empty, a missing status 0."""
    target = record.get("objectRef") or {}
    status = record.get("responseStatus") or {}
    url = urlsplit(record.get("requestURI", ""))
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
        field_manager=parse_qs(url.query).get("fieldManager", [""])[0],
        code=status.get("code", 0),
        path=url.path,
        impersonated=(record.get("impersonatedUser") or {}).get("username", ""),
        pod=next(iter(((record.get("user") or {}).get("extra") or {}).get(_POD) or ()), ""),
        decision=(record.get("annotations") or {}).get("authorization.k8s.io/decision", ""),
        message=status.get("message", ""),
    )
