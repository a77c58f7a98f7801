"""How long bytes go on arriving at a store after their upload was cancelled."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from support.processes import until
from support.uploads import TARGET, engine_for, random_bytes, tls_pair

from aiobaseten.events import Emitter
from aiobaseten.options import KiB, MiB, Options
from aiobaseten.sources import open_source
from aiobaseten.upload import UploadEngine

ARCHIVE = random_bytes(7 * MiB)
CHUNK_BYTES = 16 * KiB
PACE_S = 0.004
"""From one chunk to the next: 4 MiB/s, so that an archive is under way for 1.7 s, most of it in the sender's buffers."""


@dataclass
class SlowSink:
    """A server that reads slowly, in threads of its own, and never answers."""

    tls: ssl.SSLContext | None = None
    received: int = 0
    last_s: float = 0.0
    _listener: socket.socket = field(init=False)
    _open: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KiB)  # What arrives is what is read.
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()

    @property
    def url(self) -> str:
        port = self._listener.getsockname()[1]
        return f"https://localhost:{port}" if self.tls else f"http://127.0.0.1:{port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        self._start(self._accept)
        try:
            yield
        finally:
            for each in (self._listener, *self._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in self._threads:
                thread.join()
            for each in (self._listener, *self._open):
                each.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._start(self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while chunk := connection.recv(CHUNK_BYTES):
                self.received += len(chunk)
                self.last_s = time.monotonic()
                time.sleep(PACE_S)


@asynccontextmanager
async def slow_sink(directory: Path, *, tls: bool) -> AsyncIterator[tuple[SlowSink, UploadEngine]]:
    """A sink, and an engine that uploads to it."""
    context, bundle = tls_pair(directory) if tls else (None, None)
    sink = SlowSink(context)
    with sink.running():
        async with engine_for(sink.url, Options(ca_bundle=bundle)) as engine:
            yield sink, engine


@dataclass(frozen=True)
class Silence:
    """What still arrived after an upload was cancelled: its last byte so long after, and so many bytes in all."""

    ms: float
    bytes_after: int


async def cancel_and_listen(sink: SlowSink, engine: UploadEngine) -> Silence:
    """Cancel an upload that is under way."""
    sink.received = 0
    async with await open_source(ARCHIVE) as source:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def upload() -> None:
                    await engine.upload(TARGET, source, emit=Emitter(None))

                tasks.start_soon(upload)
                await until(lambda: sink.received > 512 * KiB)
                cancelled_s, received = time.monotonic(), sink.received
                scope.cancel()
    before = -1
    while sink.received != before:
        before = sink.received
        await anyio.sleep(0.1)
    assert sink.received < len(ARCHIVE)
    return Silence(max(0.0, 1000 * (sink.last_s - cancelled_s)), sink.received - received)
