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
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import define, field

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
            return "206 Partial Content", self.blobs[name]
        return "404 The specified blob does not exist", b""

    def serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """Answer the requests of one connection until it is closed."""
        with context.wrap_socket(connection, server_side=True) as tls:
            reader = Reader(tls)
            while head := reader.head():
                request, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = request.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
                if headers.get("expect", "").lower() == "100-continue":
                    tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                status, content = self.answer(method, target, reader.body(headers))
                tls.sendall(written(status, content, method))


@define
class Reader:
    """Reads requests; what it need not keep it reads over and over into the same memory."""

    tls: ssl.SSLSocket
    held: bytes = b""
    scratch: bytearray = field(factory=lambda: bytearray(1 << 14))

    def head(self) -> bytes:
        """Return a request's first line and its headers, nothing once the sender is gone."""
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
            more = self.tls.read(1 << 14)
            if not more:
                return b""
            self.held += more
        found, _, self.held = self.held.partition(mark)
        return found

    def _take(self, length: int) -> bytes:
        begun, self.held = self.held[:length], self.held[length:]
        if length <= KEPT:
            while len(begun) < length:
                more = self.tls.read(length - len(begun))
                if not more:
                    raise EOFError("the sender is gone")
                begun += more
            return begun
        left = length - len(begun)
        while left:
            count = self.tls.recv_into(self.scratch, min(left, len(self.scratch)))
            if not count:
                raise EOFError("the sender is gone")
            left -= count
        return b""


def written(status: str, content: bytes, method: str) -> bytes:
    """Return an answer as bytes, with the headers that a blob service never leaves out."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n"
        f"Content-Range: bytes 0-{len(content) - 1}/{len(content)}\r\nDate: {formatdate(usegmt=True)}\r\n"
        f'Last-Modified: {formatdate(usegmt=True)}\r\nETag: "0x1"\r\nx-ms-version: 2021-12-02\r\n'
        "x-ms-request-id: 0\r\nx-ms-request-server-encrypted: true\r\nx-ms-blob-type: BlockBlob\r\n"
        "Content-Type: application/xml\r\n\r\n"
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
