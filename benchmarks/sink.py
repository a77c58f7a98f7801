"""An S3-shaped server that costs as little as possible: what is uploaded is counted and dropped.

It runs as a process of its own (``python sink.py --help``), serves on loopback only, and ends with its standard input, on SIGTERM,
SIGINT or after ``--seconds``. Its first line of output is JSON: its URL and, with ``--tls``, the file of the authority that vouches
for it. Each connection has a thread that reads with blocking calls; over plain http the kernel drops the bytes (``MSG_TRUNC``, on
Linux). Checksums are answered as they were declared, not computed.

A slow link is imitated: a new connection waits for one round trip, with TLS for two, and each answer, an interim one too, for
another; bytes are read no faster than the caps allow, out of socket buffers that do not hide them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
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
CAPPED_SOCKET_BUFFER_BYTES = 128 * 1024
PACE_SLACK_S = 0.02
DROP = socket.MSG_TRUNC if sys.platform == "linux" else 0


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


class Pace:
    """Holds readers back so that together they take no more than so many bytes per second; 0 is no limit.

    A reader that came late makes up for at most `PACE_SLACK_S`, and only waits that are longer are waited: what is asked for in
    steps of a TLS record would else be a thousand short sleeps per second.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def take(self, size_bytes: int) -> None:
        """Wait until these bytes could have come over the link."""
        if not self._bytes_per_s:
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s - PACE_SLACK_S) + size_bytes / self._bytes_per_s
            ahead_s = self._free_at_s - now_s
        if ahead_s > PACE_SLACK_S:
            time.sleep(ahead_s)


class Sink:
    """What all connections share.

    :param rtt_s: waited before each answer, and once or twice for a new connection
    :param cap_bytes_per_s: of each connection; 0 is no cap
    :param total_cap_bytes_per_s: of all connections together; 0 is no cap
    :param slow_down_above: more requests at once than this are answered with SlowDown; 0 never
    """

    def __init__(self, *, rtt_s: float, cap_bytes_per_s: float, total_cap_bytes_per_s: float, slow_down_above: int) -> None:
        self.rtt_s = rtt_s
        self.capped = bool(cap_bytes_per_s or total_cap_bytes_per_s)
        self._cap_bytes_per_s = cap_bytes_per_s
        self._total = Pace(total_cap_bytes_per_s)
        self._slow_down_above = slow_down_above
        self._upload_ids = itertools.count()
        self._lock = threading.Lock()
        self._in_flight = 0

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until it ends."""
        body = Body(connection, (Pace(self._cap_bytes_per_s), self._total))
        pending = b""
        while (request := _read_head(connection, pending)) is not None:
            with self._counted() as crowded:
                if b"expect" in request.headers:
                    self._send(connection, CONTINUE)
                if request.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
                    pending = body.drop_chunks(request.rest)
                else:
                    pending = body.drop(request.length, request.rest, paced=not crowded)
                self._send(connection, SLOW_DOWN if crowded else self._answer(request))

    def _send(self, connection: socket.socket, answer: bytes) -> None:
        if self.rtt_s:
            time.sleep(self.rtt_s)
        connection.sendall(answer)

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

    def _answer(self, request: Request) -> bytes:
        query = request.path.partition(b"?")[2]
        checksums = {
            name: value
            for name, value in request.headers.items()
            if name.startswith(b"x-amz-checksum-") and name not in (b"x-amz-checksum-type", b"x-amz-checksum-algorithm")
        }
        match request.method:
            case b"PUT":
                return _response(b"200 OK", headers={b"ETag": b'"0"', **checksums})
            case b"POST" if b"uploadId=" not in query:
                upload_id = b"<UploadId>%d</UploadId>" % next(self._upload_ids)
                return _response(b"200 OK", b"<InitiateMultipartUploadResult>%s</InitiateMultipartUploadResult>" % upload_id)
            case b"POST":
                told = b"".join(b"<Checksum%s>%s</Checksum%s>" % (n[15:].upper(), v, n[15:].upper()) for n, v in checksums.items())
                content = b"<CompleteMultipartUploadResult><ETag>&quot;0&quot;</ETag>%s</CompleteMultipartUploadResult>" % told
                return _response(b"200 OK", content)
            case b"DELETE":
                return b"HTTP/1.1 204 No Content\r\nx-amz-request-id: sink\r\n\r\n"
            case b"GET" if query.startswith(b"location"):
                return _response(b"200 OK", b"<LocationConstraint>us-west-2</LocationConstraint>")
            case b"GET" if b"uploadId=" in query:
                return _response(b"200 OK", b"<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>")
            case b"HEAD" if request.path.partition(b"?")[0].strip(b"/").count(b"/") == 0:
                return _response(b"200 OK")
            case _:
                return _response(b"404 Not Found", b"" if request.method == b"HEAD" else NOT_FOUND)


class Body:
    """Reads the bodies of one connection's requests, and drops them."""

    def __init__(self, connection: socket.socket, paces: tuple[Pace, ...]) -> None:
        self._connection = connection
        self._paces = paces
        self._dropped = memoryview(bytearray(BUFFER_BYTES))
        self._flags = 0 if isinstance(connection, ssl.SSLSocket) else DROP

    def drop(self, size_bytes: int, received: bytes, *, paced: bool = True) -> bytes:
        """Drop so many bytes, of which some were received already; returns what was received beyond them.

        :param paced: False for a body that is refused: it takes nothing from what the caps leave to others
        """
        left = size_bytes - len(received[:size_bytes])
        while left:
            count = self._connection.recv_into(self._dropped, min(left, BUFFER_BYTES), self._flags)
            if not count:
                raise ConnectionError("the body ended early")
            left -= count
            for pace in self._paces if paced else ():
                pace.take(count)
        return received[size_bytes:]

    def drop_chunks(self, received: bytes) -> bytes:
        """Drop a chunked body with its trailer; returns what was received beyond it."""
        while True:
            line, received = self._read_line(received)
            size_bytes = int(line.partition(b";")[0], 16)
            if not size_bytes:
                break
            received = self.drop(size_bytes + 2, received)
        while line:
            line, received = self._read_line(received)
        return received

    def _read_line(self, received: bytes) -> tuple[bytes, bytes]:
        """The next line, and what was received beyond it."""
        while b"\r\n" not in received:
            chunk = self._connection.recv(MAX_HEAD_BYTES)
            if not chunk:
                raise ConnectionError("the body ended early")
            received += chunk
        line, _, rest = received.partition(b"\r\n")
        return line, rest


def _read_head(connection: socket.socket, received: bytes) -> Request | None:
    """The next request's head; None at the end of the connection."""
    while (end := received.find(b"\r\n\r\n")) < 0:
        chunk = connection.recv(MAX_HEAD_BYTES)
        if not chunk or len(received) > MAX_HEAD_BYTES:
            return None
        received += chunk
    request_line, *lines = received[:end].split(b"\r\n")
    method, path, _ = request_line.split(b" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    return Request(method=method, path=path, headers=headers, rest=received[end + 4 :])


def _response(status: bytes, content: bytes = b"", *, headers: dict[bytes, bytes] | None = None) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(content), b"x-amz-request-id: sink"]
    lines += [name + b": " + value for name, value in (headers or {}).items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_FOUND = b"<Error><Code>NoSuchKey</Code><Message>nothing is kept here</Message></Error>"
SLOW_DOWN = _response(b"503 Slow Down", b"<Error><Code>SlowDown</Code><Message>fewer requests at once, please</Message></Error>")


def tls(directory: Path) -> tuple[ssl.SSLContext, Path]:
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
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="of the link: waited before each answer")
    parser.add_argument("--cap-mib-per-s", type=float, default=0.0, help="of each connection; 0 is no cap")
    parser.add_argument("--total-cap-mib-per-s", type=float, default=0.0, help="of all connections together; 0 is no cap")
    parser.add_argument("--slow-down-above", type=int, default=0, help="requests at once that are taken; 0 takes all")
    parser.add_argument("--seconds", type=float, default=900.0, help="the longest it runs")
    arguments = parser.parse_args()
    sink = Sink(
        rtt_s=arguments.rtt_ms / 1000,
        cap_bytes_per_s=arguments.cap_mib_per_s * 1024 * 1024,
        total_cap_bytes_per_s=arguments.total_cap_mib_per_s * 1024 * 1024,
        slow_down_above=arguments.slow_down_above,
    )
    with tempfile.TemporaryDirectory(prefix="sink-") as directory:
        context, bundle = tls(Path(directory)) if arguments.tls else (None, None)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        if sink.capped:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CAPPED_SOCKET_BUFFER_BYTES)
        url = f"{'https' if context else 'http'}://localhost:{listener.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": url, "ca_bundle": bundle and str(bundle)}) + "\n")
        sys.stdout.flush()
        threading.Thread(target=_accept, args=(listener, context, sink), daemon=True).start()
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        ended.wait(arguments.seconds)
    os._exit(0)


def _accept(listener: socket.socket, context: ssl.SSLContext | None, sink: Sink) -> None:
    def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, ValueError), connection:
            time.sleep(sink.rtt_s * (2 if context else 1))
            sink.serve(context.wrap_socket(connection, server_side=True) if context else connection)

    while True:
        threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
