"""The most that a Python process can upload with checksums: bare sockets in two threads, without S3, retries or signatures.

Each thread reads a part into its buffer, takes the part's CRC64NVME and writes a request shaped like UploadPart.
"""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from awscrt.checksums import crc64nvme

THREADS = 2
PART_BYTES = 8 * 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024


class Ceiling:
    """A connection and a buffer for each thread."""

    def __init__(self, connections: list[socket.socket], host: str) -> None:
        self._connections = connections
        self._buffers = [bytearray(PART_BYTES) for _ in connections]
        self._host = host

    def upload(self, path: Path) -> None:
        """Send the whole file; the threads take its parts in turn, as each is done with its last one."""
        offsets = iter(range(0, path.stat().st_size, PART_BYTES))
        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(self._send, thread, path, offsets) for thread in range(THREADS)]:
                done.result()

    def _send(self, thread: int, path: Path, offsets: Iterator[int]) -> None:
        connection, buffer = self._connections[thread], memoryview(self._buffers[thread])
        with path.open("rb", buffering=0) as file:
            for offset in offsets:
                file.seek(offset)
                part = buffer[: file.readinto(buffer)]
                checksum = base64.b64encode(crc64nvme(part).to_bytes(8, "big")).decode()
                head = (
                    f"PUT /bucket/ceiling?partNumber={offset // PART_BYTES + 1}&uploadId=ceiling HTTP/1.1\r\nHost: {self._host}\r\n"
                    f"Content-Length: {len(part)}\r\nx-amz-checksum-crc64nvme: {checksum}\r\n\r\n"
                )
                connection.sendall(head.encode())
                connection.sendall(part)
                _expect_success(connection)


@contextmanager
def ceiling(url: str, ca_bundle: str | None) -> Generator[Ceiling]:
    """Connected to the sink; the block closes the connections."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=ca_bundle) if ca_bundle else None
    with ExitStack() as stack:
        connections: list[socket.socket] = []
        for _ in range(THREADS):
            connection = stack.enter_context(socket.create_connection((parts.hostname, parts.port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context:
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname=parts.hostname))
            connections.append(connection)
        yield Ceiling(connections, parts.netloc)


def _expect_success(connection: socket.socket) -> None:
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = connection.recv(MAX_ANSWER_BYTES)
        if not received or len(answer) > MAX_ANSWER_BYTES:
            raise ConnectionError("the sink gave no whole answer")
        answer += received
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"the sink refused a part: {answer[:200]!r}")
