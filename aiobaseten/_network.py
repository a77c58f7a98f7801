"""What both planes share about the network: trust, proxies, and telling in words why no answer came."""

from __future__ import annotations

import base64
import ipaddress
import ssl
import struct
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import attrs
from yarl import URL

from aiobaseten._redaction import keep_secret, takes_secrets
from aiobaseten._text import one_line
from aiobaseten.errors import ConfigurationError, TransportError

NO_LINGER = struct.pack("ii", 1, 0)
"""For ``SO_LINGER``: a socket that is closed drops what it has not sent, and resets its connection."""


def tls_context(ca_bundle: Path | None, client_cert: Path | None) -> ssl.SSLContext:
    """A context that verifies certificates and host names, against `ca_bundle` or else the system's authorities.

    :raises ConfigurationError: if one of the files cannot be read or does not hold what it should
    """
    try:
        context = ssl.create_default_context(cafile=ca_bundle)
        context.keylog_filename = None  # type: ignore[assignment]  # SSLKEYLOGFILE would write down how to read what is sent
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"Options.ca_bundle: {ca_bundle} is not a readable PEM file of certificates: {error}") from error
    if client_cert is not None:
        try:
            context.load_cert_chain(client_cert, password="")  # nosec B106  # else OpenSSL would ask at the terminal
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"Options.client_cert: {client_cert} is not a readable PEM file of a certificate and its unencrypted key: {error}"
            ) from error
    return context


def untrusted(host: str | None, error: object) -> TransportError:
    """What to raise where a server's certificate does not prove that it is the host."""
    refused = TransportError(
        f"the certificate of {host} is not trusted: {error}; set Options.ca_bundle if it is signed by an authority of your own",
        request_sent=False,
    )
    refused.retryable = False
    return refused


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address means this machine."""
    if host is None:
        return False
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen
class Proxy:
    """A proxy, and the headers that log in to it: in its URL the password would show up in aiohttp's errors."""

    url: URL
    headers: Mapping[str, str] | None = attrs.field(repr=False)


@takes_secrets
def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL (``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``).

    Loopback addresses are never reached through a proxy, and plain http is not either: there is no tunnel to send it through, and
    the proxy would read the headers that are meant for the host.

    :raises ConfigurationError: if what is named cannot be used
    """
    target = URL(url)
    if target.host is None or is_loopback(target.host) or urllib.request.proxy_bypass(f"{target.host}:{target.port}"):
        return None
    proxies = urllib.request.getproxies()
    named = proxies.get(target.scheme) or proxies.get("all")
    if not named:
        return None
    if target.scheme == "http":
        raise ConfigurationError(
            f"the environment names a proxy for http://{target.host}, which would get to see the credentials that are sent there:"
            f" use https, or put {target.host} into NO_PROXY"
        )
    proxy = parse_url(named if "://" in named else f"http://{named}")
    if proxy is None or proxy.scheme not in ("http", "https") or not proxy.host:
        raise ConfigurationError(f"the proxy that the environment names for {target.host} must be an http or https URL with a host")
    if proxy.user is None:
        return Proxy(proxy, None)
    login = base64.b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    found = Proxy(proxy.with_user(None), {"Proxy-Authorization": f"Basic {login}"})
    keep_secret(found, proxy.password or "", login)
    return found


def parse_url(url: object) -> URL | None:
    """None for what is no URL; the parser's own error is dropped, because it may quote a password."""
    if not isinstance(url, str):
        return None
    try:
        parsed = URL(url)
        (parsed.raw_host or "").encode("idna")  # as the look-up of the name does, where nobody expects it to fail
    except ValueError:
        return None
    return parsed


def transport_error(error: BaseException, url: str) -> TransportError:
    """Say in words why a request to `url` got no answer."""
    host = URL(url).host
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return untrusted(host, str(error.certificate_error))
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return TransportError(f"the proxy for {host} does not let the connection through: {_cause(error)}", request_sent=False)
        case aiohttp.ClientConnectorDNSError():
            return TransportError(f"the host name {error.host} cannot be resolved: {_cause(error)}", request_sent=False)
        case aiohttp.ClientConnectorError():
            return TransportError(f"cannot connect to {host}: {_cause(error)}", request_sent=False)
        case aiohttp.ConnectionTimeoutError():
            return TransportError(f"no connection to {host} in time", request_sent=False)
        case TimeoutError():
            return TransportError(f"{host} did not answer in time")
        case _:
            return TransportError(f"the connection to {host} broke off: {_cause(error)}")


def _cause(error: BaseException) -> str:
    os_error = getattr(error, "os_error", None)
    cause = os_error or error
    return getattr(cause, "strerror", None) or one_line(str(cause)) or type(cause).__name__
