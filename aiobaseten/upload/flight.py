"""A request under way in a worker thread, and the connections that it can be called back from.

A thread that blocks in a socket cannot be cancelled, but its socket can be shut down under it. And while a connection is being
opened, nothing of the caller's is in use: the caller need not wait for that.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import HTTPResponse, RemoteDisconnected
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPSConnection
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import wait_for_read

from aiobaseten._network import NO_LINGER

CONTINUE_TIMEOUT_S = 1.0
"""How long a store may take to say that it wants a body, before it gets it unasked. botocore's figure."""


class CalledBack(Exception):
    """The caller does not want the answer any more."""


class Flight:
    """One request, from the thread that makes it to its end.

    :param write_timeout_s: how long one write to the socket may take
    :ivar request_sent: whether the store may have seen any of it
    :ivar send_error: what kept the body from being sent whole, where an answer came all the same
    """

    def __init__(self, write_timeout_s: float) -> None:
        self.write_timeout_s = write_timeout_s
        self.request_sent = False
        self.send_error: OSError | None = None
        self._called_back = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._connecting = False

    @property
    def called_back(self) -> bool:
        return self._called_back.is_set()

    def call_back(self) -> bool:
        """Stop the request: within moments no byte of it is sent any more. Returns whether its thread must be waited for."""
        with self._lock:
            self._called_back.set()
            if self._socket is not None:
                with suppress(OSError):
                    # Closed without lingering, it drops what the system has taken and not yet sent: megabytes, on a slow link.
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                with suppress(OSError):
                    # Not SSLSocket's own method, which would go on in plain text.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return not self._connecting

    def check(self) -> None:
        """:raises CalledBack: if it was called back"""
        if self._called_back.is_set():
            raise CalledBack

    def wait(self, delay_s: float) -> None:
        """Let time pass.

        :raises CalledBack: as soon as it is called back
        """
        if delay_s > 0:
            self._called_back.wait(delay_s)
        self.check()

    @contextmanager
    def connecting(self) -> Generator[None]:
        """The block opens a connection, and touches nothing else."""
        with self._lock:
            self.check()
            self._connecting = True
        try:
            yield
        finally:
            with self._lock:
                self._connecting = False
                self.check()

    def begin(self, connection_socket: socket.socket) -> None:
        """The request goes out over this socket from now on."""
        with self._lock:
            self.check()
            self._socket = connection_socket
            self.request_sent = True

    @contextmanager
    def closing(self) -> Generator[None]:
        """The block closes the socket, whose number may be another file's a moment later."""
        with self._lock:
            yield
            self._socket = None


current_flight: ContextVar[Flight] = ContextVar("aiobaseten_flight")
"""Of the thread that runs. urllib3 chooses the connection and has no way to pass it on."""


class _FlightConnection:
    """What both kinds of connection add to urllib3's and botocore's (which adds ``Expect: 100-continue``)."""

    sock: Any
    timeout: Any
    response_class: Any
    _response_received: bool

    _cut_short = False

    def connect(self) -> None:
        with current_flight.get().connecting():
            super().connect()  # type: ignore[misc]  # a mixin

    def request(self, *arguments: Any, **named: Any) -> None:
        """Send a request. Where the store answers before it has the whole body, that answer counts."""
        flight = current_flight.get()
        if self.sock is None:
            self.connect()
        connected: Any = self.sock
        flight.begin(connected)
        self.timeout = flight.write_timeout_s
        self._cut_short = False
        try:
            super().request(*arguments, **named)  # type: ignore[misc]
        except OSError as error:
            self._cut_short = True
            flight.send_error = error
            flight.check()
            if isinstance(error, TimeoutError) and not wait_for_read(connected, timeout=0):
                raise
            raise BrokenPipeError from error  # which makes urllib3 look for an answer

    def getresponse(self) -> Any:
        kind: Any = self.response_class
        readers: list[_HeadReader] = []

        def watched(*arguments: Any, **named: Any) -> Any:
            response: HTTPResponse = kind(*arguments, **named)
            response.fp = _HeadReader(response.fp.detach())
            readers.append(response.fp)
            return response

        self.response_class = watched
        try:
            response: Any = super().getresponse()  # type: ignore[misc]
        finally:
            self.response_class = kind
        for reader in readers:
            reader.in_head = False
        if self._cut_short or self._response_received:
            # The store still waits for the body here: nothing else must follow. The answer keeps the socket until it is read.
            self.sock.close()
            self.sock = None
        return response  # pyright: ignore[reportUnknownVariableType]

    def close(self) -> None:
        flight = current_flight.get(None)
        if flight is None:
            super().close()  # type: ignore[misc]
        else:
            with flight.closing():
                super().close()  # type: ignore[misc]

    def _handle_expect_response(self, message_body: Any) -> None:
        """TLS has messages of its own, so that something to read need not be the store's word."""
        self.sock.settimeout(CONTINUE_TIMEOUT_S)
        try:
            super()._handle_expect_response(message_body)  # type: ignore[misc]
        except TimeoutError:
            pass
        finally:
            self.sock.settimeout(self.timeout)


class _HeadReader(io.BufferedReader):
    """An answer's bytes. Where http.client takes a head that is cut off for a whole one, this does not."""

    in_head = True

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if self.in_head and not line.endswith(b"\n") and len(line) != size:
            raise RemoteDisconnected("the answer ended within its head")
        return line


class _HTTPConnection(_FlightConnection, AWSHTTPConnection):  # type: ignore[misc]  # as botocore's own mixin, it takes what comes
    pass


class _HTTPSConnection(_FlightConnection, AWSHTTPSConnection):  # type: ignore[misc]  # as above
    pass


class FlightHTTPConnectionPool(HTTPConnectionPool):
    ConnectionCls: Any = _HTTPConnection


class FlightHTTPSConnectionPool(HTTPSConnectionPool):
    ConnectionCls: Any = _HTTPSConnection


POOL_CLASSES: dict[str, Any] = {"http": FlightHTTPConnectionPool, "https": FlightHTTPSConnectionPool}
"""For urllib3's pool managers. Their connections can be used in a thread that has a `current_flight`, and in no other."""
