"""What both planes share about the network: trust, proxies, and telling in words why no answer came."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import urllib.request
from pathlib import Path

import aiohttp
from yarl import URL

from aiobaseten.errors import ConfigurationError, TransportError


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """A context that verifies certificates and host names, against `ca_bundle` or else the system's authorities.

    :raises ConfigurationError: if `ca_bundle` cannot be read or holds no certificate
    """
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"Options.ca_bundle: {ca_bundle} is not a readable PEM file of certificates: {error}") from error


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


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a URL (``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``).

    Loopback addresses are never reached through a proxy.
    """
    target = URL(url)
    if target.host is None or is_loopback(target.host) or urllib.request.proxy_bypass(target.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def transport_error(error: BaseException, url: str) -> TransportError:
    """Say in words why a request to `url` got no answer."""
    host = URL(url).host
    match error:
        case aiohttp.ClientConnectorCertificateError():
            refused = TransportError(
                f"the certificate of {host} is not trusted: {error.certificate_error};"
                " set Options.ca_bundle if it is signed by an authority of your own",
                request_sent=False,
            )
            refused.retryable = False
            return refused
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return TransportError(f"the proxy for {host} does not let the connection through: {_cause(error)}", request_sent=False)
        case aiohttp.ClientConnectorDNSError():
            return TransportError(f"the host name {host} cannot be resolved: {_cause(error)}", request_sent=False)
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
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


async def close_session(session: aiohttp.ClientSession) -> None:
    """Close a session and let its TLS connections end: aiohttp closes them only in the loop's next rounds."""
    connector = session.connector
    await session.close()
    if connector is not None:
        await asyncio.sleep(0)
