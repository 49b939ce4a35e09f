"""Which session a request belongs to, from the headers of common agent programs."""

import pytest
from multidict import CIMultiDict

from retinue_gateway.errors import GatewayError
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


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([("X-Session-ID", "x" * 257)], "the header x-session-id has 257 characters: send at most 256"),
        ([("X-Session-ID", "naïve")], "the header x-session-id holds a character that is not printable ASCII: encode"),
        ([("X-Session-ID", "a\tb")], "the header x-session-id holds a character that is not printable ASCII"),
        ([("X-Session-ID", "a"), ("X-Session-ID", "b")], "the header x-session-id was sent 2 times: send it once"),
        ([("X-Session-ID", "a"), ("Session-ID", "\udcff")], "the header session-id holds a character"),
        ([("X-Parent-Session-ID", "p" * 300)], "the header x-parent-session-id has 300 characters"),
        ([("X-Session-Final", "perhaps")], "the header x-session-final is none of 0, 1, false, no, true, yes"),
    ],
)
def test_a_header_that_can_be_no_id_is_refused_by_name_with_the_remedy(
    headers: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(GatewayError) as refused:
        identify(CIMultiDict(headers), NAMES)
    assert (refused.value.status, refused.value.code) == (400, "invalid_header")
    assert message in refused.value.message


def test_header_names_come_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_GATEWAY_SESSION_HEADERS", "X-Mine, X-Other")
    settings = GatewaySettings()
    assert settings.session_headers == ("x-mine", "x-other")
    assert GatewaySettings(session_headers=("X-Flag",)).session_headers == ("x-flag",)
