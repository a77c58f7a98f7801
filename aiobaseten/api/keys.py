"""Where the API key comes from, and which hosts it may be sent to.

The key is taken from the argument, else from ``BASETEN_API_KEY``, else from the file that ``truss login`` writes. The first that is
set counts: one that cannot be a key is an error, not a reason to look further. No message ever holds a key.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import attrs
from yarl import URL

from aiobaseten._network import is_loopback, parse_url
from aiobaseten._text import one_line
from aiobaseten.errors import ConfigurationError
from aiobaseten.models import masked
from aiobaseten.options import KiB

API_KEY_VARIABLE = "BASETEN_API_KEY"
TRUSSRC_PATH_VARIABLE = "USER_TRUSSRC_PATH"
DEFAULT_TRUSSRC_PATH = "~/.trussrc"
PROVIDER = "baseten"
MAX_TRUSSRC_BYTES = 32 * KiB
"""configparser takes the square of the length of what is not its own."""
MAX_NAME_CHARACTERS = 80
MAX_HOST_CHARACTERS = 255

_NOT_IN_KEYS = re.compile(r"[^\x21-\x7e]")
_NOT_IN_URLS = re.compile(r"[\s\x00-\x1f\x7f\\]")


@attrs.frozen(kw_only=True)
class ApiKey:
    """An API key.

    :param base_url: of the API that the key is for; None where its place does not say
    :param origin: where the key was found
    """

    value: str = attrs.field(repr=masked)
    base_url: str | None = None
    origin: str


def find_api_key(explicit: str | None, environ: Mapping[str, str]) -> ApiKey:
    """The API key to use: `explicit`, else the variable ``BASETEN_API_KEY``, else the one in ``~/.trussrc``.

    In ``~/.trussrc``, which ``USER_TRUSSRC_PATH`` moves, the section named ``baseten`` counts, else the only one with
    ``remote_provider = baseten``.

    :raises ConfigurationError: if there is none, if it cannot be a key, or if the file cannot be used
    """
    if explicit is not None:
        return ApiKey(value=check_api_key(explicit, "the argument api_key"), origin="the argument api_key")
    if (value := environ.get(API_KEY_VARIABLE)) is not None:
        return ApiKey(value=check_api_key(value, API_KEY_VARIABLE), origin=API_KEY_VARIABLE)
    path = _trussrc_path(environ)
    remotes = _read_trussrc(path)
    if not remotes:
        raise ConfigurationError(
            f"no API key: pass api_key, set {API_KEY_VARIABLE}, or have a section with remote_provider = {PROVIDER} in {path}"
        )
    if PROVIDER in remotes:
        name = PROVIDER
    elif len(remotes) == 1:
        (name,) = remotes
    else:
        raise ConfigurationError(
            f"{path} has several remotes ({one_line(', '.join(sorted(remotes)))}) and none is named {PROVIDER}:"
            f" pass api_key or set {API_KEY_VARIABLE}"
        )
    return _key_of_remote(remotes[name], f"{path}, section [{_shown(name)}]")


def check_api_key(value: object, origin: str) -> str:
    """Return `value` if it can be an API key: printable ASCII without spaces.

    :param origin: what messages call its place
    :raises ConfigurationError: if it cannot
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"the API key from {origin} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ConfigurationError(f"the API key from {origin} is empty")
    if wrong := _NOT_IN_KEYS.search(value):
        raise ConfigurationError(
            f"the API key from {origin} cannot be one: its character {wrong.start() + 1} of {len(value)} is"
            f" {_kind_of(wrong.group())}, and a key holds only ASCII letters, digits and signs"
        )
    return value


def check_base_url(url: str) -> str:
    """Return `url` without a trailing slash if a key may be sent there: over https, or over http to this machine.

    It may have a port and a path prefix, but no user name, password, query or fragment.

    :raises ConfigurationError: if it is anything else
    """
    parsed = parse_url(url)
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or _NOT_IN_URLS.search(url):
        raise ConfigurationError("the base URL must be an http or https URL with a host, such as https://api.baseten.co")
    host = one_line(parsed.host, max_chars=MAX_HOST_CHARACTERS)
    if parsed.user is not None or parsed.password is not None:
        raise ConfigurationError(f"the base URL of {host} must not hold a user name or password")
    if "?" in url or "#" in url:
        raise ConfigurationError(f"the base URL of {host} must not have a query or fragment")
    if parsed.scheme == "http" and not is_loopback(parsed.host):
        raise ConfigurationError(
            f"the base URL of {host} must begin with https: a key is sent over plain http only to this machine"
        )
    return str(parsed).rstrip("/")


def _kind_of(character: str) -> str:
    if character in "\r\n":
        return "a line break"
    if character.isspace():
        return "white space"
    return "a control character" if character.isascii() else "not ASCII"


def _trussrc_path(environ: Mapping[str, str]) -> Path:
    path = Path(environ.get(TRUSSRC_PATH_VARIABLE) or DEFAULT_TRUSSRC_PATH)
    if path.parts[0] == "~" and (home := environ.get("HOME")):
        return Path(home, *path.parts[1:])
    try:
        return path.expanduser()
    except RuntimeError:  # nobody's home is known: then there is no file either
        return path


def _read_trussrc(path: Path) -> dict[str, Mapping[str, str]]:
    """The sections that describe a Baseten remote, by name; none where there is no file."""
    try:
        content = _read_small_file(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{TRUSSRC_PATH_VARIABLE} cannot be the name of a file: {error}") from error
    parser = configparser.RawConfigParser()
    problem = _parse(parser, content)
    if problem is not None:
        # Raised out here, because the parser's own errors carry the lines they complain of, and so the key.
        raise ConfigurationError(f"{path}{problem}")
    return {name: parser[name] for name in parser.sections() if parser[name].get("remote_provider", "").strip() == PROVIDER}


def _read_small_file(path: Path) -> bytes:
    """The whole of a file, without waiting for the other end of a pipe.

    :raises ConfigurationError: where it is no regular file, or too large
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:  # noqa: PTH123 - not a path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} must be a regular file")
        content = file.read(MAX_TRUSSRC_BYTES + 1)
    if len(content) > MAX_TRUSSRC_BYTES:
        raise ConfigurationError(f"{path} must not have more than {MAX_TRUSSRC_BYTES:,} bytes")
    return content


def _parse(parser: configparser.RawConfigParser, content: bytes) -> str | None:
    """Fill the parser; what is wrong with the file, if anything, begins with the line's number where one is at fault."""
    try:
        parser.read_string(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return " is not a text file in UTF-8"
    except configparser.DuplicateSectionError as error:
        return f", line {error.lineno}: there is another section of this name above"
    except configparser.DuplicateOptionError as error:
        return f", line {error.lineno}: this option is set twice in section [{_shown(error.section)}]"
    except configparser.MissingSectionHeaderError as error:
        return f", line {error.lineno}: a section in brackets, such as [{PROVIDER}], must come first"
    except configparser.ParsingError as error:
        return f", line {error.errors[0][0]}: is neither a section in brackets nor name = value"
    return None


def _shown(name: str) -> str:
    return one_line(name, max_chars=MAX_NAME_CHARACTERS)


def _key_of_remote(remote: Mapping[str, str], origin: str) -> ApiKey:
    value = remote.get("api_key")
    if value is None:
        raise ConfigurationError(
            f"{origin} holds no api_key; one that is kept in the system's keyring, or a login without a key, cannot be used here:"
            f" pass api_key or set {API_KEY_VARIABLE}"
        )
    remote_url = remote.get("remote_url")
    try:
        base_url = None if remote_url is None else _api_url(check_base_url(remote_url.strip()))
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: remote_url: {error}") from error
    return ApiKey(value=check_api_key(value, origin), base_url=base_url, origin=origin)


def _api_url(remote_url: str) -> str:
    """The API of a remote: Baseten's pages are at ``app.`` and its API at ``api.`` of the same domain."""
    url = URL(remote_url)
    host = url.host or ""
    if host.startswith("app.") and host.endswith(".baseten.co"):
        return str(url.with_host("api." + host.removeprefix("app."))).rstrip("/")
    return remote_url
