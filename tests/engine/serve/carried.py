"""A `Service` behind the standard library's HTTP server: the network of the tests, without Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from finpercep.engine.serve.service import Answer, Request, Service

Before = Callable[[str], Answer | str | None]
"""Sees each path first: answers itself, or "hang up" ends the connection, or None lets the service answer."""


@contextmanager
def carried(service: Service, before: Before = lambda path: None) -> Iterator[str]:
    """The URL of the service while inside."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            place = urlsplit(self.path)
            found = before(place.path)
            if isinstance(found, str):
                self.close_connection = True
                self.connection.close()
                return
            if found is None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, place.path, dict(parse_qsl(place.query)), headers, _at_once(body))
                found = asyncio.run_coroutine_threadsafe(service.answer(request), loop).result(60)
            self.send_response(found.status)
            for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        loop.call_soon_threadsafe(loop.stop)


async def _at_once(body: bytes) -> AsyncIterator[bytes]:
    yield body
