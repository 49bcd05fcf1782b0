"""A server on this machine that drops, truncates and lies, for tests of downloads."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse


@dataclass
class Site:
    """What the server answers: `files` by path and query, and how it misbehaves.

    `drops`: bytes after which a connection is cut, once each, in order. `ranges`: whether it can
    go on in the middle. `shift`: by how much it then lies about where. `codes`: HTTP errors to
    answer first. `redirects`: path -> path.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    drops: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    shift: int = 0
    version: str = '"1"'
    version_header: str = "ETag"
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            site.requests.append((self.path, self.headers.get("Range")))
            if site.codes:
                self.send_error(site.codes.pop(0))
            elif self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
                self.end_headers()
            elif self.path in site.files:
                self._send(site.files[self.path])
            else:
                self.send_error(404)

        def _send(self, data: bytes) -> None:
            start = self._start(data)
            if start is None:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                told = start + site.shift
                self.send_header("Content-Range", f"bytes {told}-{len(data) - 1}/{len(data)}")
            self.send_header(site.version_header, site.version)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            rest = data[start:]
            if site.drops:
                rest = rest[: site.drops.pop(0)]
                self.close_connection = True
            self.wfile.write(rest)

        def _start(self, data: bytes) -> int | None:
            match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
            same = self.headers.get("If-Range", site.version) == site.version
            start = int(match[1]) if match and site.ranges and same else 0
            return None if start and start >= len(data) else start

    return Handler


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Run a server for `site`, whose `url` is then set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    assert urlparse(site.url).hostname == "127.0.0.1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
