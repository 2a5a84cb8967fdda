"""A double of an S3 service: objects in memory over HTTP, as far as archives and anchors need it.

No S3 server can be installed from Debian. The answers are those that moto's server (5.x) gave to the same calls: status, headers and XML
of putting, putting twice with `If-None-Match: *`, getting, and getting what is not there. Checks the sum, ignores signatures.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Objects:
    """What was put, by path, and what to answer instead while there is trouble."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.trouble = 0
        """Status that every call is answered with; 0: none."""
        self.url = ""


def _error(code: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_PUT(self) -> None:
        objects = self.objects
        body = self._body()
        sum_ = self.headers.get("x-amz-checksum-sha256", "")
        if objects.trouble:
            self._answer(objects.trouble, _error("ServiceUnavailable"))
        elif base64.b64encode(hashlib.sha256(body).digest()).decode() != sum_:
            self._answer(400, _error("BadDigest"))
        elif self.headers.get("If-None-Match") == "*" and self.path in objects.content:
            self._answer(412, _error("PreconditionFailed"))
        else:
            objects.content[self.path] = body
            objects.headers[self.path] = {key.lower(): value for key, value in self.headers.items()}
            self._answer(200, b"", ETag=f'"{hashlib.md5(body).hexdigest()}"')  # noqa: S324 - S3's own tag

    def do_GET(self) -> None:
        objects = self.objects
        if objects.trouble:
            self._answer(objects.trouble, _error("ServiceUnavailable"))
        elif self.path not in objects.content:
            self._answer(404, _error("NoSuchKey"))
        else:
            self._answer(200, objects.content[self.path])

    def _body(self) -> bytes:
        whole = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.headers.get("Content-Encoding", "").startswith("aws-chunked"):
            return whole
        size, _, rest = whole.partition(b"\r\n")
        return rest[: int(size.partition(b";")[0], 16)]

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/xml", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Objects]:
    """Serve on a free loopback port."""
    objects = Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": objects}))
    objects.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
