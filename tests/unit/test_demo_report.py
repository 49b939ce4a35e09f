"""The report: one file that needs nothing from outside, with every number and decision of the run in it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retinue_emulator.demo.outcome import Outcome, checks
from retinue_emulator.demo.report import HTML_NAME, REQUESTS_NAME, SUMMARY_NAME, RunRecord, write_report
from retinue_emulator.demo.timeline import Move, PoolSample, Sample, TierSample, Timeline, size_changes
from retinue_emulator.replay.oracle import HitCount
from retinue_emulator.replay.records import SessionResult, summarise

from .demo_records import request_record

SPEED = 12.0


def sample(at: float, desired: int, ready: int) -> Sample:
    pool = PoolSample("prefill", "coder-primary", "primary", desired, 0, desired - ready, ready, 0, True, "")
    tier = TierSample("coder-cold", "ContextStorage", 1, 1, at / 100, 0.5, "128Gi", True)
    return Sample(at, (pool,), (tier,), (), 3, 9000, 0.9, 0.1, 0.001, 40.0)


@pytest.fixture
def record() -> RunRecord:
    records = [
        request_record("a", started=1.0, prompt=15_000),
        request_record("b", started=5.0, prompt=20_000, cached=14_976),
        request_record("c", session="sub", parent="reference-0", started=3.0, prompt=10_000, cached=9_000),
        request_record("d", session="other", started=4.0, prompt=30_000, error="HTTP 503"),
    ]
    sessions = [SessionResult("other", None, "main", 1, 0, 4.0, 5.0, "HTTP 503 <script>alert(1)</script>")]
    timeline = Timeline()
    for at, desired, ready in ((-2.0, 1, 0), (0.0, 1, 1), (10.0, 2, 1), (20.0, 2, 2), (30.0, 1, 1)):
        timeline.add(sample(at, desired, ready))
    timeline.moves = [
        Move(9.0, "prefill/coder-primary", 1, 2, "CacheFloor", "open sessions hold 900000 tokens & more"),
        Move(29.0, "prefill/coder-primary", 2, 1, "LoadFell", "1 would do"),
        Move(15.0, "tier/coder-cold", 1, 2, "SessionCache", "2 wanted", ("AtMaximum",)),
    ]
    outcome = Outcome(
        summary=summarise(records, sessions, speed=SPEED, duration=40.0),
        expected=HitCount(35_000, 14_976, 10_000, 9_000),
        changes=size_changes(timeline),
        behind=None,
        must_scale=("prefill/coder-primary",),
    )
    return RunRecord(
        speed=SPEED,
        load="2 sessions",
        outcome=outcome,
        checks=checks(outcome),
        records=records,
        timeline=timeline,
        reference="reference-0",
        ttft_goal=6.0,
        itl_goal=0.015,
        setup_seconds=21.0,
        wall_seconds=80.0,
    )


class Reader(HTMLParser):
    """Collects tags that stay open and addresses that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            outside = value is not None and not value.startswith("#")
            if outside and (name in ("src", "href", "xlink:href", "data")):
                self.loads.append(f"{tag} {name}={value}")


def test_the_page_loads_nothing_from_outside(record: RunRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path).read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.loads == []
    assert reader.tags["svg"] == 3
    assert "script" not in reader.tags
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_every_decision_is_in_the_table_with_its_reason(record: RunRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path).read_text()
    for words in ("CacheFloor", "LoadFell", "open sessions hold 900000 tokens &amp; more", "1 &rarr; 2", "AtMaximum"):
        assert words in page


def test_text_from_the_run_cannot_become_markup(record: RunRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_plots_take_their_text_colour_from_the_page_in_light_and_dark(record: RunRecord, tmp_path: Path) -> None:
    page = write_report(record, tmp_path).read_text()
    assert "prefers-color-scheme: dark" in page
    plots = page[page.index("<svg") :]
    assert "var(--text)" in plots
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", plots)


def test_the_numbers_stand_beside_the_page_as_json(record: RunRecord, tmp_path: Path) -> None:
    write_report(record, tmp_path)
    summary = json.loads((tmp_path / SUMMARY_NAME).read_text())
    assert summary["expected_hit_rate"]["all"] == pytest.approx((14_976 + 9_000) / 45_000)
    assert summary["sizes"][0] == {"key": "prefill/coder-primary", "first": 1, "peak": 2, "last": 1}
    assert summary["moves"][0]["model_seconds"] == 9.0 * SPEED
    assert summary["mean_cost_per_hour"] == 40.0
    lines = (tmp_path / REQUESTS_NAME).read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c", "d"]


def test_every_plot_is_also_a_file_of_its_own_with_plain_colours(record: RunRecord, tmp_path: Path) -> None:
    write_report(record, tmp_path)
    for name in ("context", "tokens", "cluster"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert text.startswith("<?xml")
        assert "var(--" not in text
        assert "#ffffff" in text


def test_the_same_run_gives_the_same_page(record: RunRecord, tmp_path: Path) -> None:
    first = write_report(record, tmp_path / "one").read_bytes()
    assert write_report(record, tmp_path / "two").read_bytes() == first
    assert (tmp_path / "one" / HTML_NAME).is_file()


def test_a_run_without_any_decision_or_answer_still_has_a_report(tmp_path: Path) -> None:
    empty = Timeline()
    outcome = Outcome(summarise([], [], speed=SPEED, duration=1.0), HitCount(), (), None, ())
    bare = RunRecord(SPEED, "nothing", outcome, checks(outcome), [], empty, "reference-0", 6.0, 0.015, 1.0, 2.0)
    assert "no decision changed a size" in write_report(bare, tmp_path).read_text()
