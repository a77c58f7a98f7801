"""An S3-shaped server that costs as little as possible: what is uploaded is counted and dropped.

It runs as a process of its own (``python sink.py --help``), serves on loopback only, and ends with its standard input or after
``--seconds``. Its first line of output is JSON: its URL and, with ``--tls``, the file of the authority that vouches for it. Each
connection has a thread that reads with blocking calls; over plain http the kernel drops the bytes (``MSG_TRUNC``, on Linux).
Checksums are answered as they were declared, not computed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

import attrs

BUFFER_BYTES = 256 * 1024
MAX_HEAD_BYTES = 64 * 1024
DROP = socket.MSG_TRUNC if sys.platform == "linux" else 0
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>fewer connections, please</Message></Error>"


@attrs.frozen(kw_only=True)
class Request:
    """The head of a request, and what came with it of the body."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    rest: bytes

    @property
    def length(self) -> int:
        return int(self.headers.get(b"content-length", b"0"))


class Sink:
    """What all connections share.

    :param rtt_s: waited before each answer
    :param cap_bytes_per_s: of each connection; 0 is no cap
    :param slow_down_above: more requests at once than this are answered with SlowDown; 0 never
    """

    def __init__(self, *, rtt_s: float, cap_bytes_per_s: float, slow_down_above: int) -> None:
        self._rtt_s = rtt_s
        self._cap_bytes_per_s = cap_bytes_per_s
        self._slow_down_above = slow_down_above
        self._upload_ids = itertools.count()
        self._lock = threading.Lock()
        self._in_flight = 0

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until it ends."""
        drop = memoryview(bytearray(BUFFER_BYTES))
        pending = b""
        while (request := _read_head(connection, pending)) is not None:
            with self._counted() as crowded:
                if request.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
                    pending = self._drain_chunks(connection, request.rest, drop)
                else:
                    pending = self._drain_past(connection, request.rest, request.length, drop)
                time.sleep(self._rtt_s)
                connection.sendall(SLOW_DOWN_ANSWER if crowded else self._answer(request))

    @contextlib.contextmanager
    def _counted(self) -> Generator[bool]:
        with self._lock:
            self._in_flight += 1
            crowded = 0 < self._slow_down_above < self._in_flight
        try:
            yield crowded
        finally:
            with self._lock:
                self._in_flight -= 1

    def _drain_past(self, connection: socket.socket, received: bytes, size_bytes: int, drop: memoryview) -> bytes:
        """Drop so many bytes, of which some were received already; returns what was received beyond them."""
        self._drain(connection, size_bytes - len(received[:size_bytes]), drop)
        return received[size_bytes:]

    def _drain_chunks(self, connection: socket.socket, received: bytes, drop: memoryview) -> bytes:
        """Drop a chunked body with its trailer."""
        while True:
            line, received = _read_line(connection, received)
            size_bytes = int(line.partition(b";")[0], 16)
            if not size_bytes:
                break
            received = self._drain_past(connection, received, size_bytes + 2, drop)
        while line:
            line, received = _read_line(connection, received)
        return received

    def _drain(self, connection: socket.socket, size_bytes: int, drop: memoryview) -> None:
        """Read and drop so many bytes."""
        flags = 0 if isinstance(connection, ssl.SSLSocket) else DROP
        started = time.monotonic()
        left = size_bytes
        while left:
            count = connection.recv_into(drop, min(left, len(drop)), flags)
            if not count:
                raise ConnectionError("the body ended early")
            left -= count
            if self._cap_bytes_per_s:
                ahead_s = (size_bytes - left) / self._cap_bytes_per_s - (time.monotonic() - started)
                time.sleep(max(0.0, ahead_s))

    def _answer(self, request: Request) -> bytes:
        query = request.path.partition(b"?")[2]
        checksums = {
            name: value
            for name, value in request.headers.items()
            if name.startswith(b"x-amz-checksum-") and name not in (b"x-amz-checksum-type", b"x-amz-checksum-algorithm")
        }
        if request.method == b"PUT":
            return _response(b"200 OK", headers={b"ETag": b'"0"', **checksums})
        if request.method == b"POST" and b"uploadId=" not in query:
            upload_id = b"<UploadId>%d</UploadId>" % next(self._upload_ids)
            return _response(b"200 OK", b"<InitiateMultipartUploadResult>%s</InitiateMultipartUploadResult>" % upload_id)
        if request.method == b"POST":
            told = b"".join(b"<Checksum%s>%s</Checksum%s>" % (n[15:].upper(), v, n[15:].upper()) for n, v in checksums.items())
            return _response(b"200 OK", b"<CompleteMultipartUploadResult><ETag>0</ETag>%s</CompleteMultipartUploadResult>" % told)
        return _response(b"204 No Content" if request.method == b"DELETE" else b"200 OK")


def _read_head(connection: socket.socket, received: bytes) -> Request | None:
    """The next request's head; None at the end of the connection. ``Expect: 100-continue`` is granted."""
    while (end := received.find(b"\r\n\r\n")) < 0:
        chunk = connection.recv(MAX_HEAD_BYTES)
        if not chunk or len(received) > MAX_HEAD_BYTES:
            return None
        received += chunk
    request_line, *lines = received[:end].split(b"\r\n")
    method, path, _ = request_line.split(b" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    if b"expect" in headers:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Request(method=method, path=path, headers=headers, rest=received[end + 4 :])


def _read_line(connection: socket.socket, received: bytes) -> tuple[bytes, bytes]:
    """The next line, and what was received beyond it."""
    while b"\r\n" not in received:
        chunk = connection.recv(MAX_HEAD_BYTES)
        if not chunk:
            raise ConnectionError("the body ended early")
        received += chunk
    line, _, rest = received.partition(b"\r\n")
    return line, rest


def _response(status: bytes, content: bytes = b"", *, headers: dict[bytes, bytes] | None = None) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(content), b"x-amz-request-id: sink"]
    lines += [name + b": " + value for name, value in (headers or {}).items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


SLOW_DOWN_ANSWER = _response(b"503 Slow Down", SLOW_DOWN)


def _tls(directory: Path) -> tuple[ssl.SSLContext, Path]:
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    bundle = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return context, bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="waited before each answer")
    parser.add_argument("--cap-mib-per-s", type=float, default=0.0, help="of each connection; 0 is no cap")
    parser.add_argument("--slow-down-above", type=int, default=0, help="requests at once that are taken; 0 takes all")
    parser.add_argument("--seconds", type=float, default=900.0, help="the longest it runs")
    arguments = parser.parse_args()
    sink = Sink(
        rtt_s=arguments.rtt_ms / 1000,
        cap_bytes_per_s=arguments.cap_mib_per_s * 1024 * 1024,
        slow_down_above=arguments.slow_down_above,
    )
    with tempfile.TemporaryDirectory(prefix="sink-") as directory:
        context, bundle = _tls(Path(directory)) if arguments.tls else (None, None)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        url = f"{'https' if context else 'http'}://localhost:{listener.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": url, "ca_bundle": bundle and str(bundle)}) + "\n")
        sys.stdout.flush()
        threading.Thread(target=_accept, args=(listener, context, sink), daemon=True).start()
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        ended.wait(arguments.seconds)
    os._exit(0)


def _accept(listener: socket.socket, context: ssl.SSLContext | None, sink: Sink) -> None:
    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, ValueError), connection:
            sink.serve(context.wrap_socket(connection, server_side=True) if context else connection)

    while True:
        threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
