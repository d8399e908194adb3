"""Removes passwords and tokens from what is stored, logged or shown: the addresses of cameras often hold them.

Example:
    without_credentials("rtsp://ada:secret@cam/1?token=x")          # "rtsp://…@cam/1?token=…"
    without_credentials({"device": "…", "password": "secret"})      # {"device": "…", "password": "…"}
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

HIDDEN = "…"
_WORDS = r"pass(?:word|wd|phrase)?|pwd|token|secret|api_?key|key|auth|credentials?|signature|sig"
_USER = re.compile(r"(?<=://)[^/?#\s@]+(?:@[^/?#\s@]+)*(?=@)")  # all before the last '@' of the host's part
_QUERY = re.compile(rf"(?i)([?&;](?:[\w-]*[_-])?(?:{_WORDS})=)[^&#\s'\"]+")
_NAME = re.compile(rf"(?i)(?:.*[_-])?(?:{_WORDS})")


def without_credentials(value: Any) -> Any:
    """The same text, or the same JSON, with passwords and tokens replaced by "…".

    In texts they are found as the user part and the query of addresses, in tables as values by the name of their key.
    """
    if isinstance(value, str):
        return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, value)) if "://" in value or "=" in value else value
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key, inner) else without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(inner) for inner in value]
    return value


def log_without_them() -> None:
    """Log to standard error, as every process of a run does."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_LogFilter())


class _LogFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if (hidden := without_credentials(text)) != text:
            record.msg, record.args = hidden, ()
        return True


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, str) and bool(value) and _NAME.fullmatch(key) is not None
