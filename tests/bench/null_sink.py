"""A blob service over TLS that throws away what it is sent: what is left is what the sender and TLS cost.

`python null_sink.py CERTIFICATE KEY` prints its port and serves until its standard input ends. It says 201 to Put Block
and Put Block List, keeps what is put in one piece (records and registrations, which their writer reads back), and lists
nothing. It checks no signature.
"""

from __future__ import annotations

import io
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
            return "200 OK", self.blobs[name]
        return "404 The specified blob does not exist", b""

    def serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """Answer the requests of one connection until it is closed."""
        scratch = memoryview(bytearray(1 << 20))
        with context.wrap_socket(connection, server_side=True) as tls:
            reader = tls.makefile("rb")
            while line := reader.readline():
                method, target, _ = line.decode("ascii").split(" ")
                headers = read_headers(reader)
                if headers.get("expect", "").lower() == "100-continue":
                    tls.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = read_body(reader, headers, scratch)
                status, content = self.answer(method, target, body)
                tls.sendall(written(status, content, method))


def read_headers(reader: io.BufferedReader) -> dict[str, str]:
    """Read the lines up to the empty one."""
    headers = {}
    while (line := reader.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return headers


def read_body(reader: io.BufferedReader, headers: Mapping[str, str], scratch: memoryview) -> bytes:
    """Read the body; a large one is thrown away piece by piece."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        kept = b""
        while length := int(reader.readline().split(b";")[0], 16):
            kept += skip(reader, length, scratch)
            reader.readline()
        reader.readline()
        return kept
    return skip(reader, int(headers.get("content-length", "0")), scratch)


def skip(reader: io.BufferedReader, length: int, scratch: memoryview) -> bytes:
    """Read so many bytes and return them, or nothing if there are too many to keep."""
    if length <= KEPT:
        return reader.read(length)
    left = length
    while left:
        count = reader.readinto1(scratch[: min(left, len(scratch))])
        if not count:
            raise EOFError("the sender is gone")
        left -= count
    return b""


def written(status: str, content: bytes, method: str) -> bytes:
    """Return an answer as bytes, with the headers that a blob service never leaves out."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nDate: {formatdate(usegmt=True)}\r\n"
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
