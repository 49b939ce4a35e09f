"""Everything that can be set about the operator process: environment variables RETINUE_*, overridden by flags."""

import os
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from retinue_operator.leader import LeaseTerms
from retinue_operator.prometheus.client import PrometheusSettings, has_credentials
from retinue_operator.schedule import Pace

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_NAMESPACE = "retinue-system"


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else DEFAULT_NAMESPACE


def _identity() -> str:
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}"


class Settings(BaseSettings):
    """The settings of one operator process; all times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="RETINUE_", frozen=True, extra="ignore")

    kubeconfig: Path | None = Field(None, description="Kubeconfig file; by default the pod's service account.")
    context: str | None = Field(None, description="Context of the kubeconfig; by default its current one.")
    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Namespaces to look after, comma-separated; by default all."
    )
    prometheus_url: str | None = Field(None, description="Base URL of the Prometheus that the autoscaler reads.")
    prometheus_headers: dict[str, str] = Field({}, description="More headers for Prometheus, as a JSON object.")
    prometheus_username: str | None = Field(None, description="User for basic authentication at Prometheus.")
    prometheus_password_file: Path | None = Field(None, description="File with the password of that user.")
    prometheus_bearer_file: Path | None = Field(None, description="File with the bearer token for Prometheus.")
    prometheus_ca_file: Path | None = Field(None, description="PEM file of the authorities that sign for Prometheus.")
    prometheus_cert_file: Path | None = Field(None, description="PEM file of the client certificate for Prometheus.")
    prometheus_key_file: Path | None = Field(None, description="PEM file of that certificate's key.")
    prometheus_verify: bool = Field(True, description="Check the certificate of Prometheus.")
    gateway_url: str | None = Field(None, description="Base URL of the gateway, shown as endpoint in status.")
    http_host: str = Field("0.0.0.0", description="Address of /livez, /readyz and /metrics.")
    http_port: int = Field(8080, ge=0, le=65535, description="Port of /livez, /readyz and /metrics; 0 = any free one.")
    http_tls_cert_file: Path | None = Field(
        None, description="PEM file of that port's certificate chain: it serves TLS."
    )
    http_tls_key_file: Path | None = Field(None, description="PEM file of that certificate's key.")
    metrics_token_file: Path | None = Field(
        None, description="File of bearer tokens, one per line, that may read /metrics; probes need none."
    )
    debug_port: int = Field(0, ge=0, le=65535, description="Port of /debug on 127.0.0.1; 0 = no such pages.")
    leader_election: bool = Field(True, description="Run only while holding the lease.")
    lease_name: str = Field("retinue-operator", description="Name of the Lease.")
    lease_namespace: str = Field(default_factory=_own_namespace, description="Namespace of the Lease.")
    lease_duration: float = Field(10.0, gt=0, description="How long a standby waits after the last renewal it saw.")
    lease_renew_deadline: float = Field(7.0, gt=0, description="The leader ends when it could not renew for so long.")
    lease_retry_period: float = Field(2.0, gt=0, description="Time between two tries to renew or to acquire.")
    identity: str = Field(default_factory=_identity, description="Name of this process in Lease and Events.")
    workers: int = Field(16, ge=1, le=256, description="Reconciles that may run at the same time.")
    min_gap: float = Field(0.05, ge=0, description="Least time between two reconciles of one object.")
    max_backoff: float = Field(60.0, gt=0, description="Longest time between retries of a failing reconcile.")
    sweep_interval: float = Field(300.0, gt=0, description="Time between two complete re-lists.")
    watch_silence: float = Field(70.0, gt=0, description="A watch that says nothing for so long is made anew.")
    stop_grace: float = Field(10.0, gt=0, description="How long running reconciles may take at a stop.")
    log_format: LogFormat = Field(LogFormat.JSON, description="Form of the log.")
    log_level: LogLevel = Field(LogLevel.INFO, description="Least severity that is logged.")
    history_file: Path | None = Field(None, description="File to which each autoscaling decision is appended as JSON.")

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        self.lease_terms()
        self.prometheus()
        return self

    def lease_terms(self) -> LeaseTerms:
        """The terms of the leader election. Raises ValueError when its times do not fit together."""
        return LeaseTerms(
            self.lease_name,
            self.lease_namespace,
            self.lease_duration,
            self.lease_renew_deadline,
            self.lease_retry_period,
        )

    def prometheus(self) -> PrometheusSettings | None:
        """How to reach Prometheus, None without an address. Raises ValueError when the settings do not fit together."""
        if (self.prometheus_username is None) != (self.prometheus_password_file is None):
            raise ValueError("prometheus_username and prometheus_password_file go together")
        if (self.prometheus_cert_file is None) != (self.prometheus_key_file is None):
            raise ValueError("prometheus_cert_file and prometheus_key_file go together")
        if (self.http_tls_cert_file is None) != (self.http_tls_key_file is None):
            raise ValueError("http_tls_cert_file and http_tls_key_file go together")
        if self.gateway_url is not None and has_credentials(self.gateway_url):
            raise ValueError("gateway_url must not hold a user or password: everybody sees it in status")
        if self.prometheus_url is None:
            return None
        user, password = self.prometheus_username, self.prometheus_password_file
        cert, key = self.prometheus_cert_file, self.prometheus_key_file
        return PrometheusSettings(
            url=self.prometheus_url,
            basic_file=(user, password) if user is not None and password is not None else None,
            bearer_file=self.prometheus_bearer_file,
            headers=self.prometheus_headers,
            ca_file=self.prometheus_ca_file,
            client_cert=(cert, key) if cert is not None and key is not None else None,
            verify=self.prometheus_verify,
        )

    def pace(self) -> Pace:
        """The pace of the work queue."""
        return Pace(min_gap=self.min_gap, max_delay=self.max_backoff)
