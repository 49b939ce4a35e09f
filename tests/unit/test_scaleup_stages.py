"""The stages of a scale-up, as the end-to-end suite reads them from an audit log."""

import json
from pathlib import Path

import pytest
from e2e.scaleup import written

POD, NAMESPACE = "coder-0", "team"


def _log(path: Path, *requests: tuple[str, int, str, str]) -> Path:
    """An audit log of requests for the pod: time of arrival, code, subresource, field manager."""
    lines = [
        json.dumps(
            {
                "verb": "patch",
                "requestReceivedTimestamp": f"2026-11-25T10:00:{time}Z",
                "requestURI": f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}?fieldManager={manager}",
                "objectRef": {"resource": "pods", "namespace": NAMESPACE, "name": POD, "subresource": subresource},
                "responseStatus": {"code": code},
            }
        )
        for time, code, subresource, manager in requests
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


SCHEDULED = ("05.200000", 201, "binding", "")
READY = ("09.300000", 200, "status", "")


def test_the_making_of_a_pod_is_found_though_it_arrived_in_the_second_before(tmp_path: Path) -> None:
    made = ("04.990000", 201, "", "retinue")
    early = ("06.000000", 200, "status", "")
    stages = written(
        _log(tmp_path / "log", made, SCHEDULED, early, READY),
        NAMESPACE,
        POD,
        "2026-11-25T10:00:05Z",
        "2026-11-25T10:00:09Z",
    )
    assert [time[17:22] for time in stages.values()] == ["04.99", "05.20", "09.30"]


def test_an_earlier_pod_of_the_same_name_is_not_meant(tmp_path: Path) -> None:
    before = [("01.000000", 201, "", "retinue"), ("01.500000", 201, "binding", ""), ("02.000000", 200, "status", "")]
    made = ("04.990000", 201, "", "retinue")
    after = ("11.000000", 201, "", "retinue")
    log = _log(tmp_path / "log", *before, made, SCHEDULED, READY, after)
    stages = written(log, NAMESPACE, POD, "2026-11-25T10:00:05Z", "2026-11-25T10:00:09Z")
    assert [time[17:22] for time in stages.values()] == ["04.99", "05.20", "09.30"]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([SCHEDULED, READY], "none of 2 writes of pod team/coder-0"),
        ([("05.000000", 409, "", "retinue"), SCHEDULED], "none of 1 writes of pod team/coder-0"),
        ([("05.000000", 201, "", "retinue"), READY], "no write in the audit log binds pod coder-0"),
        ([("05.000000", 201, "", "retinue"), SCHEDULED], "no write in the audit log shows as ready pod coder-0"),
    ],
)
def test_a_missing_stage_is_named(tmp_path: Path, requests: list[tuple[str, int, str, str]], said: str) -> None:
    log = _log(tmp_path / "log", *requests)
    with pytest.raises(LookupError, match=said):
        written(log, NAMESPACE, POD, "2026-11-25T10:00:05Z", "2026-11-25T10:00:09Z")
