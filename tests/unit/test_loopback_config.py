"""What the loopback control plane writes for its processes: Prometheus configuration, kubeconfig, arguments, audit."""

import base64
import datetime
from pathlib import Path

import yaml
from cryptography import x509

from retinue_emulator.loopback import StaticTarget
from retinue_emulator.loopback.audit import AuditEvent, parse_event, read_events, render_policy
from retinue_emulator.loopback.certificates import ADMIN, Credentials, User, load_or_create, read_tokens, token_lines
from retinue_emulator.loopback.components import COMPONENTS, Launch, Layout, Ports
from retinue_emulator.loopback.kubeconfig import render_kubeconfig
from retinue_emulator.loopback.prometheus_config import render_config

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def test_prometheus_scrapes_running_retinue_pods_at_their_http_port() -> None:
    config = yaml.safe_load(render_config(kubeconfig=Path("/k"), targets=[], scrape_interval="1s"))
    assert config["global"] == {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    assert job["honor_labels"] is False
    assert job["kubernetes_sd_configs"] == [
        {
            "role": "pod",
            "kubeconfig_file": "/k",
            "selectors": [{"role": "pod", "label": "app.kubernetes.io/managed-by=retinue"}],
        }
    ]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in job["relabel_configs"] if rule["action"] == "keep"}
    assert kept == {
        "__meta_kubernetes_pod_container_port_name": "http",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_ip": ".+",
    }


def test_pod_labels_become_target_labels() -> None:
    config = yaml.safe_load(render_config(kubeconfig=Path("/k"), targets=[], scrape_interval="1s"))
    rules = config["scrape_configs"][0]["relabel_configs"]
    copied = {rule["target_label"]: rule["source_labels"][0] for rule in rules if rule["action"] == "replace"}
    label = "__meta_kubernetes_pod_label_retinue_dev_"
    assert copied == {
        "namespace": "__meta_kubernetes_namespace",
        "pod": "__meta_kubernetes_pod_name",
        "agent_pool": label + "agent_pool",
        "role": label + "role",
        "pool": label + "pool",
        "pool_kind": label + "pool_kind",
        "retinue_instance": label + "instance",
        "node_class": label + "node_class",
        "tier": label + "tier",
    }


def test_static_targets_are_grouped_by_job() -> None:
    targets = [StaticTarget("gateway", "a:1"), StaticTarget("operator", "b:2"), StaticTarget("gateway", "c:3")]
    config = yaml.safe_load(render_config(kubeconfig=None, targets=targets, scrape_interval="500ms"))
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs == {"gateway": ["a:1", "c:3"], "operator": ["b:2"]}


def test_a_kubeconfig_embeds_everything() -> None:
    text = render_kubeconfig(server="https://s", ca_certificate=b"PEM", token="t", user="u", namespace="n")
    config = yaml.safe_load(text)
    cluster = config["clusters"][0]["cluster"]
    assert cluster == {"server": "https://s", "certificate-authority-data": base64.b64encode(b"PEM").decode()}
    assert config["users"] == [{"name": "u", "user": {"token": "t"}}]
    assert config["contexts"][0]["context"]["namespace"] == "n"


def test_the_static_token_file_says_who_is_an_administrator() -> None:
    text = token_lines({ADMIN: "secret", User("system:kube-scheduler"): "other"})
    assert text.splitlines()[0] == 'secret,retinue:admin,retinue:admin,"system:masters"'
    assert read_tokens(text) == {"retinue:admin": "secret", "system:kube-scheduler": "other"}


def test_credentials_are_made_once_and_kept(tmp_path: Path) -> None:
    first = load_or_create(tmp_path, NOW)
    serving = first.serving_certificate.read_bytes()
    again = load_or_create(tmp_path, NOW)
    assert (again.tokens, again.serving_certificate.read_bytes()) == (first.tokens, serving)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_the_serving_certificate_is_for_the_loopback_address_and_signed_by_the_ca(tmp_path: Path) -> None:
    credentials = load_or_create(tmp_path, NOW)
    certificate = x509.load_pem_x509_certificate(credentials.serving_certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(credentials.ca_certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.1" in [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


def launch(audit: bool = False, **extra: tuple[str, ...]) -> Launch:
    tools = {name: Path("/bin") / name for name in COMPONENTS}
    arguments = {name.replace("_", "-"): values for name, values in extra.items()}
    return Launch(tools, Ports(1, 2, 3, 4, 5), Layout(Path("/s")), Credentials(Path("/s/pki"), {}), audit, arguments)


def test_every_component_listens_on_the_loopback_interface_only() -> None:
    for component in COMPONENTS[1:]:
        assert "--bind-address=127.0.0.1" in launch().argv(component)
    urls = [argument for argument in launch().argv("etcd") if "-urls=" in argument]
    assert len(urls) == 4
    assert all("=http://127.0.0.1:" in argument for argument in urls)


def test_extra_arguments_come_last_and_only_to_their_component() -> None:
    configured = launch(kube_controller_manager=("--node-monitor-grace-period=10s",))
    assert configured.argv("kube-controller-manager")[-1] == "--node-monitor-grace-period=10s"
    assert "--node-monitor-grace-period=10s" not in configured.argv("kube-scheduler")


def test_the_audit_log_is_written_only_on_request() -> None:
    assert not [argument for argument in launch().argv("kube-apiserver") if "audit" in argument]
    assert "--audit-log-path=/s/logs/audit.log" in launch(audit=True).argv("kube-apiserver")


def test_the_audit_policy_records_each_write_once_and_nothing_else() -> None:
    policy = yaml.safe_load(render_policy())
    assert policy["omitStages"] == ["RequestReceived"]
    assert policy["rules"] == [
        {
            "level": "Metadata",
            "omitStages": ["ResponseStarted"],
            "verbs": ["create", "update", "patch", "delete", "deletecollection"],
        },
        {"level": "None"},
    ]


def test_reads_of_an_account_are_recorded_at_their_end_and_its_watches_when_they_begin() -> None:
    writes, watches, others, rest = yaml.safe_load(render_policy(["retinue-system"]))["rules"]
    accounts = ["system:serviceaccounts:retinue-system"]
    assert writes["verbs"][0] == "create"
    assert watches == {
        "level": "Metadata",
        "omitStages": ["ResponseComplete"],
        "userGroups": accounts,
        "verbs": ["watch"],
    }
    assert others == {"level": "Metadata", "omitStages": ["ResponseStarted"], "userGroups": accounts}
    assert rest == {"level": "None"}


def test_an_audit_record_says_who_wrote_what_with_which_field_manager() -> None:
    record = {
        "requestReceivedTimestamp": "2030-01-01T00:00:00.000000Z",
        "verb": "patch",
        "requestURI": "/api/v1/namespaces/n/pods/p/status?fieldManager=retinue-pool&force=true",
        "user": {"username": "system:serviceaccount:n:retinue"},
        "impersonatedUser": {"username": "somebody"},
        "userAgent": "retinue",
        "objectRef": {"resource": "pods", "subresource": "status", "namespace": "n", "name": "p", "apiVersion": "v1"},
        "responseStatus": {"code": 403, "message": "no"},
        "annotations": {"authorization.k8s.io/decision": "forbid"},
    }
    assert parse_event(record) == AuditEvent(
        time="2030-01-01T00:00:00.000000Z",
        user="system:serviceaccount:n:retinue",
        user_agent="retinue",
        verb="patch",
        group="",
        resource="pods",
        subresource="status",
        namespace="n",
        name="p",
        field_manager="retinue-pool",
        code=403,
        path="/api/v1/namespaces/n/pods/p/status",
        impersonated="somebody",
        decision="forbid",
        message="no",
    )


def test_a_half_written_audit_line_is_left_for_later(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    assert list(read_events(log)) == []
    log.write_text('{"verb":"create"}\n{"verb":"upd')
    assert [event.verb for event in read_events(log)] == ["create"]


def test_reads_are_left_out_of_the_log_unless_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text('{"verb":"watch"}\n{"verb":"create"}\n{"verb":"get"}\n')
    assert [event.verb for event in read_events(log)] == ["create"]
    assert [event.verb for event in read_events(log, reads=True)] == ["watch", "create", "get"]
