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
_WORDS = (
    r"pass(?:word|wd|phrase|code)?|pwd?|token|secret|api_?key|key|auth|authorization|cookie"
    r"|credentials?|signature|sig|jwt"
)
_NAMED = rf"(?:[\w-]{{0,64}}(?:[_-]|(?-i:(?<=[a-z0-9])(?=[A-Z]))))?(?:{_WORDS})"  # accessToken, not monkey
_USER = re.compile(r"(?<=://)[^/?#\s@]+(?:@[^/?#\s@]+)*(?=@)")  # all before the last '@' of the host's part
# As people write it: a password with '/', '?' or '#', which should have been encoded. A port is a number.
_RAW_USER = re.compile(r"(?<=://)[^/?#\s@:]{0,256}:(?!\d+[/?#])[^\s@]{0,256}(?=@)")
_QUERY = re.compile(rf"(?i)([?&;#/_]{_NAMED}=)[^&#\s'\"]+")
_QUOTED = re.compile(rf"(?i)((['\"]){_NAMED}\2\s*:\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,}}\]'\"]+)")  # a table in a message
_HEADER = re.compile(r"(?i)(authorization\s*[:=]\s*(?:(?:basic|bearer|digest)\s+)?)[^\s'\",]+")
_NAME = re.compile(rf"(?i){_NAMED}s?")


def without_credentials(value: Any) -> Any:
    """The same text, or the same JSON, with passwords and tokens replaced by "…".

    In texts they are found as the user part and the query of addresses, in tables as values by the name of their key.
    """
    if isinstance(value, str):
        return _text_without(value) if "=" in value or ":" in value else value
    if isinstance(value, dict):
        return {
            without_credentials(key): HIDDEN if _is_secret(key, inner) else without_credentials(inner)
            for key, inner in value.items()
        }
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
        if record.exc_info and not record.exc_text:  # a formatter takes this text, where there is one
            record.exc_text = without_credentials(logging.Formatter().formatException(record.exc_info))
        return True


def _text_without(text: str) -> str:
    text = _RAW_USER.sub(HIDDEN, _USER.sub(HIDDEN, text))
    for pattern in (_QUERY, _QUOTED, _HEADER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _is_secret(key: Any, value: Any) -> bool:
    """Also numbers, and tables and lists of secrets; `token: null` and `auth: true` say nothing."""
    if not isinstance(key, str) or value is None or isinstance(value, bool) or value in ("", [], {}):
        return False
    # More of them are a number of something, such as tokens: 128.
    is_count = key.lower().endswith("s") and isinstance(value, int | float) and not key.lower().endswith("pass")
    return _NAME.fullmatch(key) is not None and not is_count
