"""Compressed request bodies: decompressed as they arrive, within the limits of any body."""

from __future__ import annotations

import asyncio
import zlib

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.serve.admission import Admission

FORMATS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""The supported values of Content-Encoding, and zlib's format for each; "deflate" is zlib's (RFC 9110, 8.4.1.2)."""
CHUNK = 1 << 20  # bytes unpacked at a time
MAX_MEMBERS = 4096  # in a gzip body: an empty member takes 20 bytes and some microseconds


class UnpackingMiddleware:
    """Decompresses the gzip or deflate bodies of requests to `app`."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other encodings, or several at once, are left to `check_encoding`."""
        headers: list[tuple[bytes, bytes]] = scope.get("headers", [])
        encoding = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
        encoding = encoding.strip().lower()
        if scope["type"] != "http" or encoding not in FORMATS:
            await self._app(scope, receive, send)
            return
        scope["headers"] = [header for header in headers if header[0] not in {b"content-encoding", b"content-length"}]
        body = _PackedBody(receive, self._admission, encoding)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._admission.add(0, -body.size)


class _PackedBody:
    """The body of a request while it is unpacked; `size` of its bytes are counted as in flight."""

    def __init__(self, receive: Receive, admission: Admission, encoding: str) -> None:
        self._receive, self._admission, self._encoding = receive, admission, encoding
        self._decoder, self._members = zlib.decompressobj(FORMATS[encoding]), 1
        self._packed, self._is_pending, self._is_last = b"", False, False
        self.size = 0

    async def receive(self) -> Message:
        """Return the client's next message, unpacked; raise HTTPException for damaged data and exceeded limits."""
        if not self._is_pending:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed, self._is_last = message.get("body", b""), not message.get("more_body", False)
        content = await self._unpack()
        return {"type": "http.request", "body": content, "more_body": self._is_pending or not self._is_last}

    async def _unpack(self) -> bytes:
        try:
            content = await asyncio.to_thread(self._decompress)
        except zlib.error:
            raise self._refuse("is damaged, or has another encoding") from None
        if self._members > MAX_MEMBERS:
            raise self._refuse(f"has more than {MAX_MEMBERS:,} members")
        if self._decoder.unused_data:
            raise self._refuse("goes on after its end")
        if self._is_last and not self._is_pending and not self._decoder.eof:
            raise self._refuse("is cut off")
        self._count(len(content))
        return content

    def _decompress(self) -> bytes:
        """Return up to `CHUNK` unpacked bytes; gzip data have one or more members (RFC 1952, 2.2)."""
        content = self._decoder.decompress(self._packed, CHUNK)
        while self._decoder.unused_data and self._encoding != "deflate" and self._members <= MAX_MEMBERS:
            self._packed, self._decoder = self._decoder.unused_data, zlib.decompressobj(FORMATS[self._encoding])
            self._members += 1
            if len(content) == CHUNK:
                self._is_pending = True
                return content
            content += self._decoder.decompress(self._packed, CHUNK - len(content))
        self._packed = self._decoder.unconsumed_tail
        self._is_pending = len(content) == CHUNK and not self._decoder.eof  # zlib may have more even without a tail
        return content

    def _count(self, size: int) -> None:
        if self.size + size > self._admission.max_bytes:
            raise self._admission.refuse_size()
        self._admission.take(size)
        self.size += size

    def _refuse(self, reason: str) -> HTTPException:
        return HTTPException(400, f"The body cannot be unpacked: its {self._encoding} data {reason}.")
