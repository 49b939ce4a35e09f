"""Request records for tests of the demo."""

from retinue_emulator.replay.records import RequestRecord


def request_record(
    id: str,
    *,
    session: str = "reference-0",
    parent: str | None = None,
    started: float = 0.0,
    prompt: int = 1000,
    cached: int = 0,
    error: str | None = None,
) -> RequestRecord:
    """An answered request unless `error` says otherwise; times in wall seconds."""
    return RequestRecord(
        id=id,
        session=session,
        parent=parent,
        role="main" if parent is None else "explorer",
        model="primary" if parent is None else "explorer",
        phase="",
        turn=0,
        compaction=False,
        due=started,
        started=started,
        ttft=0.1,
        tpot=0.001,
        duration=1.0,
        in_tokens=prompt,
        out_tokens=10,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=10,
        status=200,
        retries=0,
        error=error,
    )
