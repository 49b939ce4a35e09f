"""The objects of the five kinds in a namespace of the test, or in one that a whole table of dry runs shares."""

from collections.abc import Iterator

import pytest

from retinue_emulator.loopback import ClusterAccess

from .objects import Objects


@pytest.fixture
def objects(cluster: ClusterAccess, namespace: str) -> Iterator[Objects]:
    """The objects of this test's own namespace; the NodeClasses that it makes are removed afterwards."""
    objects = Objects(cluster, namespace)
    yield objects
    objects.delete_cluster_scoped()


@pytest.fixture(scope="session")
def shared_objects(cluster: ClusterAccess) -> Objects:
    """Objects of the namespace `default`, for tests that write by dry run only."""
    return Objects(cluster, "default")
