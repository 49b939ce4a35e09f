"""TLS and tokens by the chart: Secrets arrive where settings look for them, and Prometheus can still scrape."""

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge

from retinue_emulator.loopback import PrometheusServer, StaticTarget, eventually
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings
from retinue_operator.credentials import Credentials
from retinue_operator.health import Check
from retinue_operator.http import ProbeServer

from ..certificates import Pair, write_pair
from .conftest import CHART, Helm
from .test_render import containers, environment, of_kind, values_file, workloads

SECURED = values_file("secured")


def test_every_file_that_a_setting_names_is_a_key_of_a_mounted_secret(helm4: Helm) -> None:
    named = 0
    for name in ("retinue-gateway", "retinue-operator"):
        workload = workloads(helm4.render(SECURED))[name]
        container = containers(workload)[0]
        folders = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"]["volumes"]}
        for variable, value in environment(container).items():
            if not variable.endswith("_FILE"):
                continue
            folder, _, file = str(value).rpartition("/")
            assert file in [item["path"] for item in volumes[folders[folder]]["secret"]["items"]], variable
            named += 1
    assert named == 10


def test_the_gateways_address_and_its_service_say_https(helm4: Helm) -> None:
    objects = helm4.render(SECURED)
    operator = environment(containers(workloads(objects)["retinue-operator"])[0])
    assert operator["RETINUE_GATEWAY_URL"] == "https://retinue-gateway.retinue-system.svc:8080"
    assert of_kind(objects, "Service")["retinue-gateway"]["spec"]["ports"][0]["appProtocol"] == "https"


def test_probes_speak_tls_exactly_where_the_port_does(helm4: Helm) -> None:
    for values, scheme in (("secured", "HTTPS"), ("default", None)):
        for name, workload in workloads(helm4.render(values_file(values))).items():
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                expected = scheme if name in ("retinue-gateway", "retinue-operator") else None
                assert containers(workload)[0][probe]["httpGet"].get("scheme") == expected


def test_the_emulators_plain_port_is_never_sent_a_token(helm4: Helm) -> None:
    objects = helm4.render(SECURED)
    jobs = {job["job_name"]: job for job in scrape_jobs(objects)}
    assert "authorization" in jobs["retinue"]
    assert not {"authorization", "scheme"} & jobs["retinue-devices"].keys()
    monitors = of_kind(objects, "PodMonitor")
    for component, secured in (("gateway", True), ("operator", True), ("emulator", False), ("engines", False)):
        endpoint = monitors[f"retinue-{component}"]["spec"]["podMetricsEndpoints"][0]
        assert ("authorization" in endpoint, endpoint.get("scheme") == "https") == (secured, secured)


def scrape_jobs(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = of_kind(objects, "ConfigMap")["retinue-prometheus"]["data"]["prometheus.yml"]
    jobs: list[dict[str, Any]] = yaml.safe_load(text)["scrape_configs"]
    return jobs


async def test_prometheus_scrapes_operator_and_gateway_as_the_chart_tells_it(helm4: Helm, tmp_path: Path) -> None:
    objects = helm4.render(SECURED)
    job = next(job for job in scrape_jobs(objects) if job["job_name"] == "retinue")
    pair = write_pair(tmp_path, names=[job["tls_config"]["server_name"]])
    (tmp_path / "token").write_text("scraper-0123456789ab\n")
    accepted = tmp_path / "tokens"
    accepted.write_text("scraper-0123456789ab\nscraper-old-01234567\n")
    # What the pod would find in its mounted Secrets.
    here = {"/secrets/metrics-ca/ca.crt": str(pair.certificate), "/secrets/metrics-auth/token": str(tmp_path / "token")}
    settings = {key: job[key] for key in ("scheme", "tls_config", "authorization")}
    settings = yaml.safe_load(re.sub(r"/secrets/[-\w./]+", lambda found: here[found[0]], yaml.safe_dump(settings)))

    registry = CollectorRegistry()
    Gauge("of_the_operator", "Something.", registry=registry).set(7)
    probes = ProbeServer(
        "127.0.0.1", 0, [Check("always", lambda: None)], [], registry, Credentials(pair.certificate, pair.key, accepted)
    )
    gateway = Gateway(
        GatewaySettings(
            host="127.0.0.1",
            port=0,
            admin_port=0,
            admin_tls_cert_file=pair.certificate,
            admin_tls_key_file=pair.key,
            metrics_token_file=accepted,
        )
    )
    await probes.start()
    try:
        async with gateway.listening():
            ports = {"operator": probes.port, "gateway": gateway.admin_port}
            for port in ports.values():
                await _probed_like_a_kubelet(port)
                await _closed_to_strangers(port, pair)
            targets = [StaticTarget(name, f"127.0.0.1:{port}", settings) for name, port in ports.items()]
            async with PrometheusServer(targets=targets, scrape_interval="200ms") as prometheus:

                async def scraped() -> bool:
                    return len(await prometheus.query("up == 1")) == 2

                await eventually(scraped, what="both are scraped", timeout=30)
                assert [sample.value for sample in await prometheus.query("of_the_operator")] == [7]
                assert await prometheus.query("retinue_gateway_rejected_requests_total or process_cpu_seconds_total")
    finally:
        await probes.stop()


async def _probed_like_a_kubelet(port: int) -> None:
    async with aiohttp.ClientSession() as http, http.get(f"https://127.0.0.1:{port}/livez", ssl=False) as response:
        assert response.status == 200


async def _closed_to_strangers(port: int, pair: Pair) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pair.client())) as http:
        for headers in ({}, {"Authorization": "Bearer nobody-0123456789ab"}):
            async with http.get(f"https://127.0.0.1:{port}/metrics", headers=headers) as response:
                assert response.status == 401
                assert "of_the_operator" not in await response.text()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("default", "The gateway authenticates nobody"),
        ("secured", None),
        ("secured,gateway.tls.secret=", "Tokens travel in the clear"),
    ],
)
def test_the_notes_warn_of_a_gateway_that_is_open(helm4: Helm, values: str, said: str | None) -> None:
    name, _, more = values.partition(",")
    file = str(values_file(name))
    told = helm4.succeed(
        "install", "retinue", str(CHART), "--dry-run=client", "--values", file, *(("--set", more) if more else ())
    )
    notes = told.partition("NOTES:")[2]
    assert "Talk to them" in notes
    for warning in ("The gateway authenticates nobody", "Tokens travel in the clear"):
        assert (warning in notes) == (warning == said)
