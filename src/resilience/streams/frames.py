"""Frames: a part is cut into frames of equal plain size; each is one independent zstd frame (RFC 8878).

Frames carry their plain size and a checksum of their content, so each can be expanded and proven alone, in any order,
by any zstd; the concatenation of a part's frames is again a valid zstd stream.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from resilience.model.errors import ChecksumMismatch

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

FRAME_SIZE = 4 << 20
"""Plain bytes in a frame. Large enough that per-frame work vanishes, small enough that a dozen fit in memory."""


class Cutter:
    """Cuts chunks of any size into frames of `size` bytes, without copying what already has that size.

    Only the end of what is fed tells which frame is the last: a full one is yielded when the next byte is there.
    """

    def __init__(self, size: int = FRAME_SIZE) -> None:
        self.size = size
        self.total = 0
        self.frames: int | None = None
        self._pieces: list[bytes | memoryview] = []
        self._held = 0

    def feed(self, chunk: bytes | memoryview) -> Iterator[Sequence[bytes | memoryview]]:
        """Take a chunk; yield every frame that is full and not the last, as the pieces it consists of."""
        self.total += len(chunk)
        rest: bytes | memoryview = chunk
        while self._held + len(rest) > self.size:
            if room := self.size - self._held:
                view = memoryview(rest)
                self._pieces.append(view[:room])
                rest = view[room:]
            yield self._pieces
            self._pieces, self._held = [], 0
        if rest:
            self._pieces.append(rest)
            self._held += len(rest)

    def finish(self) -> Iterator[Sequence[bytes | memoryview]]:
        """Yield the last frame, the only one that may be shorter; `frames` is how many there were with it.

        What is empty has one empty frame.
        """
        self.frames = max(1, -(-self.total // self.size))
        yield self._pieces
        self._pieces, self._held = [], 0


class Compressor:
    """Compresses frames; usable from several threads, each reusing a context of its own."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._contexts = threading.local()

    def __call__(self, pieces: Sequence[bytes | memoryview]) -> bytes:
        """Return the pieces of one frame as one zstd frame."""
        plain = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        context: zstd.ZstdCompressor | None = getattr(self._contexts, "zstd", None)
        if context is None:
            parameter = zstd.CompressionParameter
            context = zstd.ZstdCompressor(
                options={
                    parameter.compression_level: self.level,
                    parameter.checksum_flag: 1,
                    parameter.content_size_flag: 1,
                }
            )
            self._contexts.zstd = context
        context.set_pledged_input_size(len(plain))
        return context.compress(plain, context.FLUSH_FRAME)


def expand(stored: bytes, size: int) -> bytes:
    """Return the `size` plain bytes of one zstd frame.

    Raises ChecksumMismatch if the frame is damaged, truncated, followed by anything or of another size; never expands
    more than `size` bytes, whatever the frame claims.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        plain = decompressor.decompress(stored, max_length=size + 1)
        if len(plain) <= size and not decompressor.eof:
            plain += decompressor.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise ChecksumMismatch(f"the frame cannot be expanded: {error}") from error
    if len(plain) != size or not decompressor.eof or decompressor.unused_data:
        raise ChecksumMismatch(f"the frame does not expand to the {size} bytes its manifest says")
    return plain
