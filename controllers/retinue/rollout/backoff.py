"""How long a failing instance waits before it is started again."""

FIRST_SECONDS = 10.0
LIMIT_SECONDS = 300.0
HEALTHY_SECONDS = 600.0


def restart_delay(restarts: int) -> float:
    """Seconds to wait before start number `restarts` + 1: 0 after the first failure, then 10, 20, 40 ... 300."""
    if restarts <= 1:
        return 0.0
    return float(min(LIMIT_SECONDS, FIRST_SECONDS * 2.0 ** min(restarts - 2, 16)))


def forgiven(restarts: int, last_restart: float, ready: bool, now: float) -> bool:
    """Whether an instance has been healthy for long enough that its restarts no longer count."""
    return restarts > 0 and ready and now - last_restart >= HEALTHY_SECONDS
