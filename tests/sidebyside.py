"""Which tests pytest-xdist may run side by side."""

from xdist.scheduler import LoadScopeScheduling

# The component tests stay together, because their last one judges what all of them have done on their API server.
_CLUSTERS = {"component": "component", "crd": "chart", "chart": "chart", "faults": "faults"}


class OneWorkerPerCluster(LoadScopeScheduling):
    """Tests of one cluster share a worker, in their order; every other test goes where there is room.

    The folder decides, not the xdist_group mark: pytest-xdist 3.8 loses that under pytest 9.2 (its issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        _, _, inside = nodeid.partition("tests/")
        return _CLUSTERS.get(inside.partition("/")[0], nodeid)
