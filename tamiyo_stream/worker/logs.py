"""Structured logs on stderr: readable lines, or JSON by setting. Nothing secret reaches them."""

from __future__ import annotations

import logging
import sys

import structlog

from tamiyo_stream.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Send the worker's structlog events to stderr at the configured level."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
