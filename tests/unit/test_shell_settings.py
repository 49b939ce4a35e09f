"""How to reach Prometheus is set by environment or flags; files are read for each request; nonsense is refused."""

import base64
from pathlib import Path

import pytest
from pydantic import ValidationError

from retinue_operator.prometheus.client import Denied, PrometheusClient, PrometheusSettings
from retinue_operator.settings import Settings

URL = "https://prometheus.example:9090"


def test_without_an_address_there_is_no_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETINUE_PROMETHEUS_URL", raising=False)
    assert Settings().prometheus() is None


def test_the_environment_sets_credentials_headers_and_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "URL": URL,
        "HEADERS": '{"X-Scope-OrgID": "team"}',
        "USERNAME": "retinue",
        "PASSWORD_FILE": "/secrets/password",
        "CA_FILE": "/secrets/ca.crt",
        "CERT_FILE": "/secrets/tls.crt",
        "KEY_FILE": "/secrets/tls.key",
        "VERIFY": "false",
    }.items():
        monkeypatch.setenv(f"RETINUE_PROMETHEUS_{name}", value)
    assert Settings().prometheus() == PrometheusSettings(
        url=URL,
        basic_file=("retinue", Path("/secrets/password")),
        headers={"X-Scope-OrgID": "team"},
        ca_file=Path("/secrets/ca.crt"),
        client_cert=(Path("/secrets/tls.crt"), Path("/secrets/tls.key")),
        verify=False,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prometheus_username": "me"}, "prometheus_username and prometheus_password_file go together"),
        ({"prometheus_key_file": "/key"}, "prometheus_cert_file and prometheus_key_file go together"),
        ({"prometheus_url": "prometheus:9090"}, "must begin with http:// or https://"),
        (
            {
                "prometheus_url": URL,
                "prometheus_username": "me",
                "prometheus_password_file": "/p",
                "prometheus_bearer_file": "/t",
            },
            "at most one",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_at_the_start(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(settings)


async def test_a_rotated_password_is_used_with_the_next_request(tmp_path: Path) -> None:
    password = tmp_path / "password"
    client = PrometheusClient(PrometheusSettings(URL, basic_file=("me", password)))
    for secret in ("first", "second"):
        password.write_text(secret + "\n")
        expected = "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
        assert client._headers()["Authorization"] == expected
    password.unlink()
    with pytest.raises(Denied, match=r"the password for .* cannot be read"):
        client._headers()


async def test_a_missing_certificate_is_told_in_one_line(tmp_path: Path) -> None:
    settings = PrometheusSettings(URL, client_cert=(tmp_path / "tls.crt", tmp_path / "tls.key"))
    async with PrometheusClient(settings) as client:
        with pytest.raises(Denied, match=r"the certificates for .* cannot be read"):
            await client.query("up")
