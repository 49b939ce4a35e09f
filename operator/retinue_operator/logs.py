"""Structured logs: one line per decision, JSON or text, with the object that is being reconciled in every line."""

import logging
import sys
from typing import TextIO

import structlog
from structlog.types import Processor

from retinue_operator.settings import LogFormat, LogLevel

# Libraries that report each request or each retry at a level meant for their own developers.
_QUIET = {
    "kopf": logging.WARNING,
    # Retries of an API server that restarts: our own client and health checks tell that once.
    "kopf._cogs.clients.api": logging.CRITICAL,
    # It says that it installs no signal handlers, which is intended (see source.py).
    "kopf._core.reactor.running": logging.ERROR,
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging for the whole process; by default to standard error."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    output = stream if stream is not None else sys.stderr
    last: list[Processor]
    if log_format == LogFormat.JSON:
        last = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
