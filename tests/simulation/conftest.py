"""What the operator logs of thousands of worlds is nobody's reading; a failing world tells its own story."""

from collections.abc import Iterator
from typing import NoReturn

import pytest
import structlog


def drop(_logger: object, _name: str, _event: object) -> NoReturn:
    """Throws a log line away."""
    raise structlog.DropEvent


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """No log lines while a world runs."""
    before = structlog.get_config()
    structlog.configure(processors=[drop], cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)
