"""The Prometheus of the release over HTTP, for tests that ask it much more than one query."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from retinue_emulator.loopback import LoopbackError

from .manifests import Object
from .portforward import forwarded
from .world import PROMETHEUS, World


class QueryError(Exception):
    """Prometheus refused what it was asked."""


@dataclass(frozen=True)
class Prometheus:
    """The HTTP API at `url`."""

    url: str

    def query(self, promql: str) -> list[Object]:
        """The series of an instant query. Raises QueryError."""
        return list(self.api("query", query=promql)["result"])

    def api(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of /api/v1. Raises QueryError with what Prometheus said, LoopbackError without answer."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{parameters or path}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise LoopbackError("Prometheus does not answer", str(error)) from error


@contextmanager
def prometheus(world: World) -> Iterator[Prometheus]:
    """A port-forward to the Prometheus of the release."""
    service, port = PROMETHEUS.split(":")
    with forwarded(world.access, world.release.namespace, f"service/{service}", int(port)) as url:
        yield Prometheus(url)
