"""The command lines of the control plane's processes, as pure functions of ports, files and options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .certificates import Credentials
from .ports import HOST

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
# In start order; they are stopped in the reverse.
COMPONENTS = (ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER)

SERVICE_RANGE = "10.0.0.0/24"


@dataclass(frozen=True)
class Ports:
    """The loopback ports of one control plane."""

    etcd: int
    etcd_peer: int
    api_server: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True)
class Layout:
    """Where one control plane keeps what, all below `state`."""

    state: Path

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def etcd_data(self) -> Path:
        return self.state / "etcd"

    @property
    def credentials(self) -> Path:
        return self.state / "pki"

    @property
    def kubeconfigs(self) -> Path:
        return self.state / "kubeconfigs"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def audit_policy(self) -> Path:
        return self.state / "audit-policy.yaml"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def kubeconfig(self, component: str) -> Path:
        return self.kubeconfigs / f"{component}.kubeconfig"


@dataclass(frozen=True)
class Launch:
    """Everything the command lines depend on. `extra` arguments come last, so that they win over ours."""

    tools: Mapping[str, Path]
    ports: Ports
    layout: Layout
    credentials: Credentials
    audit: bool
    extra: Mapping[str, Sequence[str]]

    def argv(self, component: str) -> list[str]:
        """The complete command line of one of COMPONENTS."""
        arguments = {
            ETCD: etcd_arguments,
            API_SERVER: api_server_arguments,
            CONTROLLER_MANAGER: controller_manager_arguments,
            SCHEDULER: scheduler_arguments,
        }[component](self)
        return [str(self.tools[component]), *arguments, *self.extra.get(component, ())]

    def health_url(self, component: str) -> str:
        """The URL that answers 200 once the component does its work."""
        return {
            ETCD: f"http://{HOST}:{self.ports.etcd}/readyz",
            API_SERVER: f"https://{HOST}:{self.ports.api_server}/readyz",
            CONTROLLER_MANAGER: f"https://{HOST}:{self.ports.controller_manager}/healthz",
            SCHEDULER: f"https://{HOST}:{self.ports.scheduler}/readyz",
        }[component]


def etcd_arguments(launch: Launch) -> list[str]:
    client = f"http://{HOST}:{launch.ports.etcd}"
    peer = f"http://{HOST}:{launch.ports.etcd_peer}"
    return [
        f"--data-dir={launch.layout.etcd_data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # Losing the last writes in a power cut is fine for a throw-away cluster, waiting for the disk is not.
        "--unsafe-no-fsync=true",
        "--log-level=error",
    ]


def api_server_arguments(launch: Launch) -> list[str]:
    credentials = launch.credentials
    audit = [
        f"--audit-policy-file={launch.layout.audit_policy}",
        f"--audit-log-path={launch.layout.audit_log}",
        # One file for the whole life: a reader must not miss what a rotation moved away.
        "--audit-log-maxsize=100000",
        "--audit-log-mode=blocking",
    ]
    return [
        f"--etcd-servers=http://{HOST}:{launch.ports.etcd}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={launch.ports.api_server}",
        f"--tls-cert-file={credentials.serving_certificate}",
        f"--tls-private-key-file={credentials.serving_key}",
        f"--client-ca-file={credentials.ca_certificate}",
        f"--token-auth-file={credentials.token_file}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={credentials.service_account_public_key}",
        f"--service-account-signing-key-file={credentials.service_account_key}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allow-privileged=true",
        # The `kubernetes` Service has no endpoints: an EndpointSlice would refuse the loopback address.
        "--endpoint-reconciler-type=none",
        *(audit if launch.audit else []),
    ]


def controller_manager_arguments(launch: Launch) -> list[str]:
    return [
        *_client_arguments(launch, CONTROLLER_MANAGER, launch.ports.controller_manager),
        f"--service-account-private-key-file={launch.credentials.service_account_key}",
        f"--root-ca-file={launch.credentials.ca_certificate}",
        "--use-service-account-credentials=true",
        # Endpoints refuse the loopback addresses of emulated pods: these controllers could only fill events with that.
        "--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller",
    ]


def scheduler_arguments(launch: Launch) -> list[str]:
    return _client_arguments(launch, SCHEDULER, launch.ports.scheduler)


def _client_arguments(launch: Launch, component: str, port: int) -> list[str]:
    kubeconfig = launch.layout.kubeconfig(component)
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--tls-cert-file={launch.credentials.serving_certificate}",
        f"--tls-private-key-file={launch.credentials.serving_key}",
        "--leader-elect=false",
        "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics",
    ]
