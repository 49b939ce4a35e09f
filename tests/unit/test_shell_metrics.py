"""What the operator says of its own process, beside what it does."""

from prometheus_client import generate_latest

from retinue_operator.metrics import Metrics


def test_memory_and_cpu_of_the_process_are_on_the_page() -> None:
    page = generate_latest(Metrics().registry).decode()
    assert "\nprocess_resident_memory_bytes " in page
    assert "\nprocess_cpu_seconds_total " in page
