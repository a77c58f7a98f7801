"""A server of raw connections that does to each what a test says, in threads, over TLS or not."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: x\r\n\r\n"
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\n\r\nbusy"


@dataclass
class Peer:
    """One connection, seen from the server."""

    socket: socket.socket
    number: int
    _ahead: bytes = b""

    def head(self) -> bytes:
        """A request's head; empty where the client has gone."""
        while b"\r\n\r\n" not in self._ahead:
            piece = self.socket.recv(65536)
            if not piece:
                return b""
            self._ahead += piece
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        return head

    def body(self, size: int) -> bytes:
        while len(self._ahead) < size:
            piece = self.socket.recv(1 << 20)
            if not piece:
                break
            self._ahead += piece
        body, self._ahead = self._ahead[:size], self._ahead[size:]
        return body

    def rest(self) -> bytes:
        """All that comes until the client goes, however it goes."""
        with suppress(OSError):
            while piece := self.socket.recv(1 << 20):
                self._ahead += piece
        return self._ahead

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def serve(self, answer: bytes = OK) -> None:
        """Take requests and answer each, until the client goes."""
        while head := self.head():
            sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            self.body(sum(sizes))
            self.send(answer)


Script = Callable[[Peer], None]


@dataclass
class ScriptedServer:
    port: int
    scheme: str
    connections: int = 0
    errors: list[Exception] = field(default_factory=list)

    def url(self, host: str = "localhost") -> str:
        return f"{self.scheme}://{host}:{self.port}/bucket/key"


@contextmanager
def scripted_server(*scripts: Script, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Play `scripts` to the connections in turn, the last one to all further ones."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScriptedServer(listener.getsockname()[1], "https" if tls else "http")
    threads: list[threading.Thread] = []
    open_sockets: list[socket.socket] = []

    def play(raw: socket.socket, script: Script, number: int) -> None:
        try:
            connection = tls.wrap_socket(raw, server_side=True) if tls else raw
            open_sockets.append(connection)
            with connection:
                script(Peer(connection, number))
        except OSError:
            raw.close()
        except Exception as error:  # noqa: BLE001 - told to the test
            server.errors.append(error)

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = scripts[min(server.connections, len(scripts) - 1)]
            server.connections += 1
            open_sockets.append(raw)
            threads.append(threading.Thread(target=play, args=(raw, script, server.connections)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for each in open_sockets:
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    assert server.errors == []


@contextmanager
def connect_proxy(port: int) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy whose every tunnel leads to `port`. Yields its own port and the heads of the requests for tunnels."""
    heads: list[bytes] = []

    def tunnel(peer: Peer) -> None:
        heads.append(peer.head())
        with socket.create_connection(("127.0.0.1", port)) as target:
            peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            there = threading.Thread(target=_relay, args=(peer.socket, target))
            there.start()
            _relay(target, peer.socket)
            there.join()

    with scripted_server(tunnel) as proxy:
        yield proxy.port, heads


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
