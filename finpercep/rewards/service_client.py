"""Requests to a service of `finpercep serve` that are sent again until they are answered, or patience ends."""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import ssl
import threading
import time
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

__all__ = ["TOKEN", "Client", "ServiceError"]

TOKEN = "FINPERCEP_TOKEN"
"""Environment variable that holds the token of a service."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between attempts
_AGAIN = (408, 429, 502, 503, 504)
log = logging.getLogger("finpercep.remote")


class ServiceError(RuntimeError):
    """A service that gave no answer in time, refused a request, or serves another reward than before."""


class Reply(NamedTuple):
    status: int
    headers: Any
    body: bytes


class Client:
    """Connections to one service, one for each thread that asks; see `RemoteReward` for the arguments.

    Raises:
        ValueError: a URL of another form than http://host:port.
    """

    def __init__(self, url: str, *, token: str | None, timeout: float, patience: float) -> None:
        self._place = _place(url)
        self.url = url.rstrip("/")
        self._token = (token or os.environ.get(TOKEN, "")).strip() or None
        self._timeout, self._patience = timeout, patience
        self.forget()

    def forget(self) -> None:
        """Leave the connections there are to the process that this one was forked from."""
        self._own = threading.local()

    def insist(self, method: str, path: str, headers: dict[str, str], body: bytes, over: threading.Event) -> Reply:
        """The reply to a request, which is sent again as long as there is hope and patience, and it is not `over`."""
        end, pause = time.monotonic() + self._patience, FIRST_WAIT
        while True:
            asked = None
            try:
                reply = self._send(method, path, headers, body)
                if reply.status == 200:
                    return reply
                reason = _reason(reply)
                if not _is_passing(reply):
                    raise ServiceError(f"{self.url}: expected an answer, got {reply.status}: {reason}")
                asked = reply.headers.get("Retry-After")
            except (OSError, http.client.HTTPException) as error:
                self._disconnect()
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise ServiceError(f"{self.url}: expected a valid certificate, got {error}") from error
                reason = str(error) or type(error).__name__
            wait = float(asked) if asked and asked.isdecimal() else pause
            wait = min(wait, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            if time.monotonic() + wait > end:
                raise ServiceError(f"{self.url}: expected an answer within {self._patience:g} s, got {reason}")
            if method == "GET" and pause == FIRST_WAIT:  # nobody need wait for a wrong address without knowing it
                log.warning("%s: no answer yet (%s); trying for another %.0f s", self.url, reason, self._patience)
            if over.wait(wait):
                raise ServiceError(f"{self.url}: expected an answer, got {reason}; nobody waits for it any more")
            pause = min(2 * pause, LONGEST_WAIT)

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            made = http.client.HTTPSConnection if self._place.scheme == "https" else http.client.HTTPConnection
            assert self._place.hostname is not None
            connection = made(self._place.hostname, self._place.port, timeout=self._timeout)
            self._own.connection = connection
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connection.request(method, self._place.path.rstrip("/") + path, body, {**headers, **authorization})
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())

    def _disconnect(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None

    def content(self, reply: Reply, *needed: str) -> dict[str, Any]:
        """What a service answered.

        Raises:
            ServiceError: it is no JSON of a service, or lacks the fingerprint or what else is needed.
        """
        try:
            found = json.loads(reply.body)
            for name in ("fingerprint", *needed):
                found[name]
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{self.url}: expected a service of finpercep, got another answer") from error
        return dict(found)


def _place(url: str) -> SplitResult:
    """The parts of a service's address.

    Raises:
        ValueError: another one than http://host:port, or with credentials.
    """
    try:
        place = urlsplit(url)
        known = place.port is None or place.port > 0  # ValueError: no number, or too large a one
    except ValueError:
        known = False
    if not known or place.scheme not in ("http", "https") or not place.hostname or place.username or place.query:
        raise ValueError(f"url: expected http://host:port, got {url}")
    return place


def _is_passing(reply: Reply) -> bool:
    """Whether another attempt may succeed: busy, or not an answer of the reward itself (whose process has died)."""
    return reply.status in _AGAIN or (reply.status == 500 and not _is_ours(reply))


def _is_ours(reply: Reply) -> bool:
    return str(reply.headers.get("Content-Type", "")).startswith("application/json")


def _reason(reply: Reply) -> str:
    try:
        return str(json.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status}"
