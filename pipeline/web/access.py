"""Who may open a page: the token, other sites, and how many connections and orders one may have.

Example:
    check_access("127.0.0.1", token=None)                       # ConfigError where the token does not protect the page
    refusal(request.headers, presented="…", token="…")          # (401, "This page needs its token …")
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from pipeline.errors import ConfigError
from pipeline.installation import COMMAND

NO_TOKEN = "none"  # the option's value that turns the token off
MIN_TOKEN = 8  # characters


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_access(address: str, token: str | None) -> None:
    """Raises ConfigError for a token that does not protect the page, as the options `address` and `token` have it."""
    if token not in (None, NO_TOKEN) and len(token or "") < MIN_TOKEN:
        raise ConfigError(f"token: too short to protect the page. Choose at least {MIN_TOKEN} characters.")
    if token in (None, NO_TOKEN) and not is_loopback(address):
        raise ConfigError(
            f"address: '{address}' shows camera and microphone to the network. "
            f"Set a token too (token: at least {MIN_TOKEN} characters), or keep address: 127.0.0.1"
        )


def token_in_use(token: str | None, log: logging.Logger) -> str | None:
    """The token that requests must have; None for the option "none", and says in the log what that means."""
    if token == NO_TOKEN:
        log.warning("the page needs no token: every program and user of this machine can read it and stop the run")
    return None if token == NO_TOKEN else token


def refusal(headers: Mapping[str, str], *, presented: str, token: str | None) -> tuple[int, str] | None:
    """Why a request is refused, as HTTP status and reason; None accepts it. presented: the token it came with.

    A page of another site can make a browser call us by our address (Origin shows it) or by a name of its own that
    resolves to 127.0.0.1 (DNS rebinding: Host shows it). The second cannot get around a token, since a browser stores
    that for our name; so with a token any name is accepted, and a reverse proxy works.
    """
    host = headers.get("host", "")
    try:
        name, site = urlsplit(f"//{host}").hostname or "", urlsplit(headers.get("origin", f"//{host}")).netloc
    except ValueError:
        return 400, "The Host or Origin header is no address."
    if token is None and not is_loopback(name):
        return 421, f"This page answers only as 127.0.0.1 or localhost, not as '{name}'."
    if site != host:
        return 403, f"A page of another site ({headers.get('origin')}) has no access."
    if token is not None and not hmac.compare_digest(presented.encode(), token.encode()):
        return 401, (
            "This page needs its token: open the address that the run printed, with its ?token=…, "
            f"or the one that this shows: {COMMAND} runs"
        )
    return None


class RateLimit:
    """At most `per_s` a second on average, and `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._last_s = float(burst), time.monotonic()

    def allows(self) -> bool:
        now_s = time.monotonic()
        self._left = min(self._burst, self._left + (now_s - self._last_s) * self._per_s)
        self._last_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
