"""Kubeconfig files: one cluster, one bearer token, everything embedded, so that the file works wherever it is."""

import base64

import yaml


def render_kubeconfig(*, server: str, ca_certificate: bytes, token: str, user: str, namespace: str = "default") -> str:
    """The text of a kubeconfig with one context named `retinue-loopback`; `ca_certificate` is PEM."""
    name = "retinue-loopback"
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": base64.b64encode(ca_certificate).decode(),
                    },
                }
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user, "namespace": namespace}}],
            "current-context": name,
        },
        sort_keys=False,
    )
