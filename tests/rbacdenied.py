"""What no account of Retinue may do, as tables, and what the API server's authorizer says about them.

A table has one line per denial: verbs | resources (with group and subresource, as kubectl writes them) | namespaces.
Without namespaces a line is asked for everywhere: all namespaces at once, a system's, a tenant's and Retinue's own.
"""

import http.client
import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from retinue_emulator.loopback import ClusterAccess

from .rbacproof import Account

ALL_NAMESPACES = ""
READ = "get list watch"
WRITE = "create update patch delete deletecollection"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_SECONDS = 30.0
_EVERYWHERE = (ALL_NAMESPACES, "kube-system", "default", "agents", "retinue-system")

EVERYBODY = f"""
{READ} {WRITE} | secrets
{READ} {WRITE} | configmaps
{READ} {WRITE} impersonate | serviceaccounts
create | serviceaccounts/token
{READ} {WRITE} escalate bind | roles.rbac.authorization.k8s.io clusterroles.rbac.authorization.k8s.io
{READ} {WRITE} | rolebindings.rbac.authorization.k8s.io clusterrolebindings.rbac.authorization.k8s.io
impersonate | users groups uids.authentication.k8s.io userextras.authentication.k8s.io/scopes
impersonate:user-info | users.authentication.k8s.io groups.authentication.k8s.io
impersonate:serviceaccount | serviceaccounts.authentication.k8s.io
impersonate:arbitrary-node | nodes.authentication.k8s.io
get create | pods/exec pods/attach pods/portforward pods/proxy services/proxy
get create update patch delete | nodes/proxy
get | pods/log
update patch | pods/ephemeralcontainers pods/resize
create | pods/eviction pods/binding bindings
deletecollection | pods services nodes
deletecollection | agentpools.retinue.dev prefillpools.retinue.dev decodepools.retinue.dev kvcachetiers.retinue.dev
{WRITE} | nodeclasses.retinue.dev agentpools.retinue.dev
{WRITE} | namespaces
{WRITE} | customresourcedefinitions.apiextensions.k8s.io apiservices.apiregistration.k8s.io
{WRITE} | validatingwebhookconfigurations.admissionregistration.k8s.io
{WRITE} | mutatingwebhookconfigurations.admissionregistration.k8s.io
{WRITE} | validatingadmissionpolicies.admissionregistration.k8s.io
{WRITE} | validatingadmissionpolicybindings.admissionregistration.k8s.io
{READ} {WRITE} | certificatesigningrequests.certificates.k8s.io
update patch | certificatesigningrequests.certificates.k8s.io/approval
update patch | certificatesigningrequests.certificates.k8s.io/status
approve sign | signers.certificates.k8s.io
{READ} {WRITE} | persistentvolumes persistentvolumeclaims
{READ} {WRITE} | storageclasses.storage.k8s.io volumeattachments.storage.k8s.io
{READ} {WRITE} | deployments.apps daemonsets.apps statefulsets.apps replicasets.apps jobs.batch cronjobs.batch
{WRITE} | networkpolicies.networking.k8s.io resourcequotas limitranges
{WRITE} | priorityclasses.scheduling.k8s.io runtimeclasses.node.k8s.io
{WRITE} | endpoints endpointslices.discovery.k8s.io
{READ} update delete deletecollection | events events.events.k8s.io
list watch delete deletecollection | leases.coordination.k8s.io
{READ} {WRITE} | leases.coordination.k8s.io | kube-system default agents
* | * *.*
* | pods secrets
get | /metrics /logs /debug/pprof
* | /*
"""

OPERATOR = f"""
get {WRITE} | nodes
update patch | nodes/status pods/status services/status
update | pods services prefillpools.retinue.dev decodepools.retinue.dev kvcachetiers.retinue.dev
update | agentpools.retinue.dev/status decodepools.retinue.dev/status nodeclasses.retinue.dev/status
update patch | agentpools.retinue.dev/finalizers decodepools.retinue.dev/scale
delete | services
create patch | events
patch | leases.coordination.k8s.io | retinue-system
{READ} {WRITE} | leases.coordination.k8s.io | kube-node-lease
"""

GATEWAY = f"""
get {WRITE} | pods
update patch | pods/status
{READ} {WRITE} | services nodes
get | agentpools.retinue.dev
update patch | agentpools.retinue.dev/status
{READ} {WRITE} | prefillpools.retinue.dev decodepools.retinue.dev kvcachetiers.retinue.dev nodeclasses.retinue.dev
create patch | events events.events.k8s.io
{READ} {WRITE} | leases.coordination.k8s.io | retinue-system kube-node-lease
"""

EMULATOR = f"""
get create update patch | pods
update | pods/status nodes nodes/status
{READ} {WRITE} | services
{READ} {WRITE} | prefillpools.retinue.dev decodepools.retinue.dev kvcachetiers.retinue.dev nodeclasses.retinue.dev
{READ} | agentpools.retinue.dev
update patch | agentpools.retinue.dev/status
create patch | events.events.k8s.io
{READ} update delete | leases.coordination.k8s.io | kube-node-lease
{READ} {WRITE} | leases.coordination.k8s.io | retinue-system
"""

KUBELET_PLUGIN = f"""
create update delete | nodes
update patch | nodes/status
get {WRITE} | pods
update patch | pods/status
{READ} {WRITE} | services
{READ} {WRITE} | prefillpools.retinue.dev decodepools.retinue.dev kvcachetiers.retinue.dev nodeclasses.retinue.dev
{READ} | agentpools.retinue.dev
{WRITE} | resourceclaims.resource.k8s.io deviceclasses.resource.k8s.io
create patch | events events.events.k8s.io
{READ} {WRITE} | leases.coordination.k8s.io | retinue-system kube-node-lease
"""

# By part of Retinue: all that its account must not be allowed.
DENIED: Mapping[str, str] = {
    "operator": EVERYBODY + OPERATOR,
    "gateway": EVERYBODY + GATEWAY,
    "emulator": EVERYBODY + EMULATOR,
    "kubelet-plugin": EVERYBODY + KUBELET_PLUGIN,
}


@dataclass(frozen=True)
class Question:
    """Whether one verb on one resource is allowed; `resource` as kubectl writes it, or a path beginning with `/`."""

    verb: str
    resource: str
    namespace: str = ALL_NAMESPACES
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource} {self.name} in {self.namespace or 'all namespaces'}"

    def attributes(self) -> dict[str, dict[str, str]]:
        """The part of a SubjectAccessReview's spec that says what is asked for."""
        if self.resource.startswith("/"):
            return {"nonResourceAttributes": {"verb": self.verb, "path": self.resource}}
        qualified, _, subresource = self.resource.partition("/")
        resource, _, group = qualified.partition(".")
        asked = {"verb": self.verb, "group": group, "resource": resource, "subresource": subresource}
        return {"resourceAttributes": {**asked, "namespace": self.namespace, "name": self.name}}


def questions(table: str) -> list[Question]:
    """All combinations of verbs, resources and namespaces of each line, each once."""
    found: dict[Question, None] = {}
    for line in filter(None, map(str.strip, table.splitlines())):
        verbs, resources, *namespaces = (cell.split() for cell in line.split("|"))
        for resource in resources:
            # Paths and wildcard groups have no namespace of their own.
            everywhere = (ALL_NAMESPACES,) if resource.startswith("/") else _EVERYWHERE
            for namespace in namespaces[0] if namespaces else everywhere:
                found.update({Question(verb, resource, namespace): None for verb in verbs})
    return list(found)


def allowed(access: ClusterAccess, account: Account, asked: Iterable[Question]) -> list[Question]:
    """Those that the API server would allow: the account asks it itself, by SelfSubjectAccessReviews.

    Over one connection: kubectl would take minutes for some thousand questions.
    """
    token = access.kubectl("create", "token", account.name, f"--namespace={account.namespace}").strip()
    server = urlsplit(access.server)
    assert server.hostname is not None
    trust = ssl.create_default_context(cafile=str(access.ca_file))
    connection = http.client.HTTPSConnection(server.hostname, server.port, timeout=_SECONDS, context=trust)
    try:
        return [question for question in asked if _allows(connection, token, question)]
    finally:
        connection.close()


def _allows(connection: http.client.HTTPSConnection, token: str, question: Question) -> bool:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": question.attributes()}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", _REVIEWS, json.dumps(review), headers)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == http.client.CREATED, f"{question}: {answer.status} {body[:500]!r}"
    verdict: bool = json.loads(body)["status"]["allowed"]
    return verdict
