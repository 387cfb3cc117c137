"""A blob service over TLS that throws away what it is sent: what is left is what the sender and TLS cost.

`python null_sink.py CERTIFICATE KEY` prints its port and serves until its standard input ends. It says 201 to Put Block
and Put Block List, keeps what is put in one piece (records and registrations, which their writer reads back), and lists
nothing. Whatever part of them is asked for, they are answered whole. It checks no signature.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import define, field

T = TypeVar("T")

KEPT = 1 << 20
NOTHING = b'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>'


@define
class Sink:
    """The small blobs, and how much was thrown away."""

    blobs: dict[str, bytes] = field(factory=dict)

    def answer(self, method: str, target: str, body: bytes) -> tuple[str, bytes]:
        """Return the status and the body of the answer to one request."""
        parts = urlsplit(target)
        asked, name = parse_qs(parts.query), unquote(parts.path)
        if method == "PUT":
            if "comp" not in asked:
                self.blobs[name] = body
            return "201 Created", b""
        if asked.get("comp") == ["list"]:
            return "200 OK", NOTHING
        if name in self.blobs:
            return "200 OK" if method == "HEAD" else "206 Partial Content", self.blobs[name]
        return "404 The specified blob does not exist", b""

    def serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """Answer the requests of one connection until it is closed."""
        with connection, suppress(EOFError, ConnectionError, ssl.SSLError):
            reader = Reader(Tls(connection, context))
            while True:
                request, *lines = reader.head().decode("latin-1").split("\r\n")
                method, target, _ = request.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
                if headers.get("expect", "").lower() == "100-continue":
                    reader.tls.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                status, content = self.answer(method, target, reader.body(headers))
                reader.tls.write(written(status, content, method))


class Tls:
    """The server's side of a TLS connection, read from the kernel much at once: a call for every record costs more."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._arriving, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arriving, self._leaving, server_side=True)
        self._received = bytearray(256 << 10)
        self._until_read(self._tls.do_handshake)
        self._flush()

    def read_into(self, scratch: bytearray, most: int) -> int:
        """Read at most so many bytes and return how many. Raises EOFError once the sender is gone."""
        # With memory to read into it returns how many bytes came, whatever typeshed says.
        count = int(self._until_read(lambda: self._tls.read(most, scratch)))
        if not count:
            raise EOFError("the sender is gone")
        return count

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._tls.write(data)
        self._flush()

    def _until_read(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                count = self._connection.recv_into(self._received)
                if not count:
                    raise EOFError("the sender is gone") from None
                self._arriving.write(memoryview(self._received)[:count])

    def _flush(self) -> None:
        if self._leaving.pending:
            self._connection.sendall(self._leaving.read())


@define
class Reader:
    """Reads requests, and what it need not keep over and over into the same memory. Raises EOFError at the end."""

    tls: Tls
    held: bytes = b""
    scratch: bytearray = field(factory=lambda: bytearray(1 << 14))

    def head(self) -> bytes:
        """Return a request's first line and its headers."""
        return self._until(b"\r\n\r\n")

    def body(self, headers: Mapping[str, str]) -> bytes:
        """Read the body; nothing is kept of a large one."""
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._take(int(headers.get("content-length", "0")))
        kept = b""
        while length := int(self._until(b"\r\n").split(b";")[0], 16):
            kept += self._take(length)
            self._until(b"\r\n")
        self._until(b"\r\n")
        return kept

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.held:
            self.held += self._more(len(self.scratch))
        found, _, self.held = self.held.partition(mark)
        return found

    def _take(self, length: int) -> bytes:
        begun, self.held = self.held[:length], self.held[length:]
        if length <= KEPT:
            while len(begun) < length:
                begun += self._more(length - len(begun))
            return begun
        left = length - len(begun)
        while left:
            left -= self.tls.read_into(self.scratch, min(left, len(self.scratch)))
        return b""

    def _more(self, most: int) -> bytes:
        count = self.tls.read_into(self.scratch, min(most, len(self.scratch)))
        return bytes(memoryview(self.scratch)[:count])


def written(status: str, content: bytes, method: str) -> bytes:
    """Return an answer as bytes, with the headers that a blob service never leaves out."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n"
        f"Content-Range: bytes 0-{len(content) - 1}/{len(content)}\r\nDate: {formatdate(usegmt=True)}\r\n"
        f'Last-Modified: {formatdate(usegmt=True)}\r\nETag: "0x1"\r\nx-ms-version: 2021-12-02\r\n'
        "x-ms-request-id: 0\r\nx-ms-request-server-encrypted: true\r\nx-ms-blob-type: BlockBlob\r\n"
        f"{'Content-Type: application/xml' if content else 'Server: nobody'}\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if method == "HEAD" else content)


def main(certificate: str, key: str) -> None:
    """Listen on a free port of the loopback, a thread per connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    sink = Sink()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=sink.serve, args=(connection, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
