"""The objects of the five kinds in a namespace of the test, or in one that a whole table of dry runs shares."""

from collections.abc import Iterator

import pytest

from retinue_emulator.loopback import ClusterAccess

from .objects import Objects


@pytest.fixture
def objects(cluster: ClusterAccess, namespace: str) -> Objects:
    """The objects of this test's own namespace."""
    return Objects(cluster, namespace)


@pytest.fixture(scope="session")
def shared_objects(cluster: ClusterAccess) -> Iterator[Objects]:
    """Objects of the namespace `default`, for tests that write by dry run only."""
    yield Objects(cluster, "default")
