"""Which session a request belongs to, from the headers of common agent programs."""

import pytest
from multidict import CIMultiDict

from retinue_gateway.identity import HeaderNames, Identity, identify
from retinue_gateway.settings import GatewaySettings

_DEFAULTS = GatewaySettings()
NAMES = HeaderNames(_DEFAULTS.session_headers, _DEFAULTS.parent_session_headers, _DEFAULTS.final_session_headers)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Identity()),
        ({"X-Session-ID": "a", "X-Parent-Session-ID": "b"}, Identity("a", "b")),
        ({"X-Dynamo-Session-ID": "a", "X-Dynamo-Parent-Session-ID": "b"}, Identity("a", "b")),
        ({"X-Dynamo-Session-ID": "a", "X-Dynamo-Session-Final": "true"}, Identity("a", None, True)),
        ({"X-Session-ID": "a", "X-Session-Final": "FALSE"}, Identity("a")),
        ({"session-id": "codex"}, Identity("codex")),
        ({"x-claude-code-session-id": "run"}, Identity("run")),
        ({"x-claude-code-session-id": "run", "x-claude-code-agent-id": "sub"}, Identity("sub", "run")),
        (
            {
                "x-claude-code-session-id": "run",
                "x-claude-code-agent-id": "sub",
                "x-claude-code-parent-agent-id": "lead",
            },
            Identity("sub", "lead"),
        ),
        ({"X-Session-ID": " ", "X-Session-Final": "true"}, Identity()),
        ({"X-Session-ID": "a", "X-Parent-Session-ID": "a"}, Identity("a")),
    ],
)
def test_the_headers_of_each_program_name_session_parent_and_end(headers: dict[str, str], expected: Identity) -> None:
    assert identify(CIMultiDict(headers), NAMES) == expected


def test_a_long_id_is_shortened_and_still_tells_sessions_apart() -> None:
    one, two = (identify(CIMultiDict({"x-session-id": "x" * 5000 + end}), NAMES).session for end in "ab")
    assert one is not None
    assert two is not None
    assert len(one) < 128
    assert one != two


def test_header_names_come_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_GATEWAY_SESSION_HEADERS", "X-Mine, X-Other")
    settings = GatewaySettings()
    assert settings.session_headers == ("x-mine", "x-other")
    assert GatewaySettings(session_headers=("X-Flag",)).session_headers == ("x-flag",)
