"""Every value of the Helm chart: the one source of values.yaml, values.schema.json and docs/values.md."""

from typing import Any

from retinue_operator.chart.schema import Section, Value, choice, embedded, mapping, number, pattern, strings

_NAME = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_URL = r"https?://[^\s]+$"
_DURATION = r"([0-9]+(ms|s|m|h|d|w|y))+$"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_WHEN_SERVED = ("Auto", "Always", "Never")


def _image(repository: str, tag: str = "") -> Section:
    return Section(
        "Container image.",
        {
            "repository": Value("Repository, below image.registry.", repository, {"type": "string", "minLength": 1}),
            "tag": Value("Tag." if tag else "Tag; empty for the chart's appVersion.", tag),
            "digest": pattern("Digest; wins over the tag.", "", r"sha256:[0-9a-f]{64}$"),
        },
    )


def _resources(cpu: str, memory: str, limit: str) -> Section:
    amounts = {"cpu": pattern("CPU.", "", _QUANTITY), "memory": pattern("Memory.", "", _QUANTITY)}
    requests = {"cpu": pattern("CPU.", cpu, _QUANTITY), "memory": pattern("Memory.", memory, _QUANTITY)}
    return Section(
        "Compute resources of the container; an empty amount is left out.",
        {
            "requests": Section("What is reserved.", requests),
            "limits": Section("What is allowed.", {**amounts, "memory": pattern("Memory.", limit, _QUANTITY)}),
        },
    )


def _account(what: str) -> Section:
    return Section(
        f"Service account of the {what}.",
        {
            "create": Value("Make it; otherwise an account of this name must exist.", True),
            "name": pattern("Its name; empty for the name of the Deployment.", "", _NAME + "$"),
            "annotations": mapping("Annotations, for example of a workload identity."),
        },
    )


def _scheduling() -> dict[str, Value | Section]:
    return {
        "nodeSelector": mapping("Labels that the node must carry."),
        "tolerations": embedded("Taints that are tolerated.", "array"),
        "affinity": embedded("Affinity; replaces none of the topology spread.", "object"),
        "podAnnotations": mapping("Annotations of the pods."),
        "podLabels": mapping("More labels of the pods."),
    }


def _disruption() -> Section:
    members: dict[str, Value | Section] = {
        "enabled": Value("Make a PodDisruptionBudget; only with two replicas or more.", True),
        "maxUnavailable": number("Pods that an eviction may take at the same time.", 1, 1),
    }
    return Section("Limits evictions, for example while nodes are drained.", members)


def _secret(what: str, **keys: str) -> Section:
    members: dict[str, Value | Section] = {"secret": pattern(f"Secret with {what}; empty for none.", "", _NAME + "$")}
    for name, key in keys.items():
        members[name] = Value(f"Key in the Secret for the {name.removesuffix('Key')}.", key, _SECRET_KEY)
    return Section(f"{what[0].upper()}{what[1:]}, from a Secret in the release's namespace.", members)


_SECRET_KEY: dict[str, Any] = {"type": "string", "pattern": r"^[-._a-zA-Z0-9]+$"}

_OPERATOR = Section(
    "The operator.",
    {
        "replicas": number("Pods; one leads, the others stand by. 0 stops the operator, engines serve on.", 2, 0, 5),
        "image": _image("retinue/operator"),
        "resources": _resources("100m", "128Mi", "512Mi"),
        "workers": number("Reconciles that may run at the same time.", 16, 1, 256),
        "sweepInterval": number("Seconds between two complete re-lists.", 300, 10),
        "logLevel": choice("Least severity that is logged.", "info", ("debug", "info", "warning", "error")),
        "logFormat": choice("Form of the log.", "json", ("json", "text")),
        "debugPort": number("Port of the debug pages on the pod's loopback address; 0 for none.", 0, 0, 65535),
        "leaderElection": Section(
            "Times of the leader election, in seconds.",
            {
                "leaseDuration": number("How long a standby waits after the last renewal it saw.", 10, 1),
                "renewDeadline": number("The leader ends when it could not renew for so long.", 7, 1),
                "retryPeriod": number("Time between two tries.", 2, 1),
            },
        ),
        "podDisruptionBudget": _disruption(),
        "serviceAccount": _account("operator"),
        "extraEnv": embedded("More environment variables (RETINUE_*), as in a container.", "array"),
        **_scheduling(),
    },
)

_GATEWAY = Section(
    "The session-aware, OpenAI-compatible front door.",
    {
        "enabled": Value("Install it.", True),
        "url": pattern("Base URL shown as endpoint in status; empty for the Service's name.", "", _URL),
        "replicas": number("Pods. Sessions live in a pod's memory: more than one needs affinity in front.", 1, 0, 50),
        "image": _image("retinue/gateway"),
        "resources": _resources("250m", "256Mi", "1Gi"),
        "service": Section(
            "Service in front of it.",
            {
                "type": choice("Type.", "ClusterIP", ("ClusterIP", "NodePort", "LoadBalancer")),
                "port": number("Port.", 8080, 1, 65535),
                "nodePort": number("Port on every node, for the types that have one; 0 for any free one.", 0, 0, 65535),
                "annotations": mapping("Annotations, for example of a load balancer."),
                "sessionAffinity": choice("Keeps a client's address on one pod.", "ClientIP", ("None", "ClientIP")),
            },
        ),
        "tls": _secret("the certificate of its API port", certificateKey="tls.crt", keyKey="tls.key"),
        "auth": _secret("tenants and their tokens, see docs/security.md", tokensKey="tokens.yaml"),
        "engineToken": _secret("the token that it sends to engines with API keys", tokenKey="token"),
        "cacheIsolation": choice(
            "Between whom no cached prefix is ever a hit.", "tenant", ("tenant", "namespace", "none")
        ),
        "limits": Section(
            "What it takes on at one time, and how slow a client may be.",
            {
                "maxBodyBytes": number("Largest request body.", 67108864, 1024),
                "maxHeldBodyBytes": number("Bodies of all requests under way.", 268435456, 1024),
                "maxInFlight": number("Requests under way.", 4096, 1),
                "maxInFlightPerTenant": number("Those of one tenant, or of one namespace; 0 for no limit.", 0, 0),
                "maxConnections": number("Connections to one port.", 8192, 1),
                "clientIdleTimeout": number("Seconds in which a connection must bring a request's head.", 75, 1),
                "clientBodyTimeout": number("Seconds in which a request's body must come.", 60, 1),
                "clientWriteTimeout": number("Seconds that a client may take for what waits for it.", 60, 1),
            },
        ),
        "sessionIdleTimeout": number("Seconds after which an idle session is no longer open.", 900, 1),
        "queueTimeout": number("Seconds that a request waits for an instance that can take it.", 60, 0),
        "shutdownDelay": number("Seconds between SIGTERM and the refusal of new requests.", 5, 0),
        "shutdownGrace": number("Seconds that running streams may take to finish then.", 600, 0),
        "latencyScale": number("Divides the bounds of latency histograms; 1 unless engines are emulated.", 1, 0.001),
        "logLevel": choice("Least severity that is logged.", "info", ("debug", "info", "warning", "error")),
        "logFormat": choice("Form of the log.", "json", ("json", "text")),
        "podDisruptionBudget": _disruption(),
        "serviceAccount": _account("gateway"),
        "extraEnv": embedded("More environment variables (RETINUE_GATEWAY_*), as in a container.", "array"),
        "networkPolicyFrom": embedded("Who may call it (peers of a NetworkPolicy); empty for everybody.", "array"),
        **_scheduling(),
    },
)

_EMULATOR = Section(
    "Emulated accelerators on real nodes, for kind, CI and demos. Its pods are privileged: never beside real devices.",
    {
        "enabled": Value("Install the DaemonSet.", False),
        "image": _image("retinue/emulator"),
        "inventory": Value(
            "Text of an inventory file whose nodes bear the names of the cluster's; needed when it is enabled.", ""
        ),
        "devicesBy": choice(
            "How accelerators reach pods: extended resources, or claims (DRA).",
            "device-plugin",
            ("device-plugin", "dra"),
        ),
        "deviceClasses": strings(
            "DeviceClasses to make, each for the devices of the DRA driver of the same name (gpu.nvidia.com).",
        ),
        "kubeletDir": Value(
            "The kubelet's root on the nodes.", "/var/lib/kubelet", {"type": "string", "pattern": "^/"}
        ),
        "cdiDir": Value("Where the runtime looks for CDI files.", "/var/run/cdi", {"type": "string", "pattern": "^/"}),
        "resources": _resources("50m", "96Mi", "256Mi"),
        "serviceAccount": _account("emulator"),
        "extraArgs": strings("More arguments of `retinue-emulator kubelet-plugin`."),
        **_scheduling(),
    },
)

_PROMETHEUS = Section(
    "The Prometheus that the autoscaler reads.",
    {
        "url": pattern("Base URL; empty for the embedded one, or for no autoscaling at all.", "", _URL),
        "headers": mapping("More headers of each query, such as X-Scope-OrgID."),
        "auth": Section(
            "At most one of these.",
            {
                "basic": _secret("user and password", usernameKey="username", passwordKey="password"),
                "bearer": _secret("a bearer token", tokenKey="token"),
                "serviceAccountToken": Section(
                    "A token of the operator's own service account, renewed by the kubelet.",
                    {
                        "enabled": Value("Send it.", False),
                        "audience": Value("Audience of the token; empty for the API server's.", ""),
                    },
                ),
            },
        ),
        "tls": Section(
            "For an https URL.",
            {
                "ca": _secret("the authorities to trust", key="ca.crt"),
                "client": _secret("a client certificate", certificateKey="tls.crt", keyKey="tls.key"),
                "insecureSkipVerify": Value("Do not check the server's certificate.", False),
            },
        ),
        "embedded": Section(
            "A small Prometheus of its own that scrapes Retinue only: for kind, demos and first steps.",
            {
                "enabled": Value("Install it.", False),
                "image": _image("prom/prometheus", "v3.13.2"),
                "scrapeInterval": pattern("Time between two scrapes.", "5s", _DURATION),
                "retention": pattern("How long samples are kept.", "6h", _DURATION),
                "storage": pattern("Most that its emptyDir may hold.", "2Gi", _QUANTITY),
                "resources": _resources("100m", "256Mi", "1Gi"),
                "nodeSelector": mapping("Labels that the node must carry."),
                "tolerations": embedded("Taints that are tolerated.", "array"),
            },
        ),
    },
)

_METRICS = Section(
    "The ports for metrics and probes of operator and gateway. Probes need no token, and check no certificate.",
    {
        "tls": Section(
            "The certificate of these ports, from a Secret in the release's namespace.",
            {
                **_secret("the certificate", certificateKey="tls.crt", keyKey="tls.key").members,
                "caKey": pattern(
                    "Key for the authority that scrapers trust; empty: they do not check the certificate.",
                    "ca.crt",
                    r"[-._a-zA-Z0-9]+$",
                ),
                "serverName": pattern(
                    "Name that scrapers expect in it; empty for FULLNAME-metrics.NAMESPACE.svc.",
                    "",
                    r"[-.a-z0-9]{1,253}$",
                ),
            },
        ),
        "auth": Section(
            "Bearer tokens of scrapers, from a Secret in the release's namespace.",
            {
                "secret": pattern("Secret with the tokens; empty for none.", "", _NAME + "$"),
                "acceptedKey": Value("Key for the tokens that are accepted, one per line.", "token", _SECRET_KEY),
                "sentKey": Value("Key for the one that the chart's scrapers send.", "token", _SECRET_KEY),
            },
        ),
    },
)

_MONITORING = Section(
    "What is told to monitoring. Auto: made when the cluster serves monitoring.coreos.com/v1.",
    {
        "podMonitors": Section(
            "PodMonitors for operator, gateway, engines and tier servers.",
            {
                "create": choice("Whether they are made.", "Auto", _WHEN_SERVED),
                "interval": pattern(
                    "Time between two scrapes; a quarter of the metricsWindow at most.", "15s", _DURATION
                ),
                "labels": mapping("Labels by which your Prometheus selects them."),
            },
        ),
        "rules": Section(
            "PrometheusRule with recording rules and alerts.",
            {
                "create": choice("Whether it is made.", "Auto", _WHEN_SERVED),
                "labels": mapping("Labels by which your Prometheus selects it."),
                "runbookBase": Value(
                    "Prefix of the runbook links.", "docs/runbooks", {"type": "string", "minLength": 1}
                ),
            },
        ),
        "dashboards": Section(
            "Grafana dashboards as ConfigMaps.",
            {
                "create": Value("Make them.", True),
                "labels": mapping("Labels by which Grafana's sidecar finds them.", {"grafana_dashboard": "1"}),
                "annotations": mapping("Annotations, for example of a folder.", {"grafana_folder": "Retinue"}),
            },
        ),
    },
)

VALUES = Section(
    "Values of the chart retinue.",
    {
        "nameOverride": pattern("Replaces the chart's name in names of objects.", "", _NAME + "$"),
        "fullnameOverride": pattern("Replaces release and chart name in names of objects.", "", _NAME + "$"),
        "commonLabels": mapping("Labels of every object."),
        "image": Section(
            "Where all images come from.",
            {
                "registry": pattern("Registry and path before every repository.", "", r"[^\s/][^\s]*[^\s/]$"),
                "pullPolicy": choice("When they are pulled.", "IfNotPresent", ("IfNotPresent", "Always", "Never")),
                "pullSecrets": strings("Secrets with credentials of the registry.", regex=f"^{_NAME}$"),
            },
        ),
        "crds": Section(
            "The custom resource definitions.",
            {"install": Value("Install and upgrade them with the release. They stay after an uninstall.", True)},
        ),
        "watch": Section(
            "What is looked after.",
            {
                "namespaces": strings(
                    "Namespaces; empty for all. Named ones get Roles in place of cluster-wide rights.",
                    regex=f"^{_NAME}$",
                )
            },
        ),
        "rbac": Section("Rights.", {"create": Value("Make roles and bindings.", True)}),
        "priorityClass": Section(
            "Priority of operator and gateway.",
            {
                "create": Value("Make a PriorityClass.", False),
                "name": pattern(
                    "Its name, or that of one that exists; empty with create for the full name.",
                    "",
                    r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$",
                ),
                "value": number("Its value.", 1000000, -2147483648, 1000000000),
            },
        ),
        "networkPolicy": Section(
            "NetworkPolicies for everything that the chart installs. Engines are yours: see docs/security.md.",
            {
                "create": Value("Make them.", True),
                "apiServerPorts": Value(
                    "Ports of the API server.",
                    [443, 6443],
                    {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
                ),
                "metricsFrom": embedded("Who may scrape (peers of a NetworkPolicy); empty for everybody.", "array"),
            },
        ),
        "operator": _OPERATOR,
        "gateway": _GATEWAY,
        "metrics": _METRICS,
        "prometheus": _PROMETHEUS,
        "monitoring": _MONITORING,
        "emulator": _EMULATOR,
    },
)
