"""Where the API key comes from, and which URLs it may go to."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiobaseten.api.keys import ApiKey, check_api_key, check_base_url, find_api_key
from aiobaseten.errors import ConfigurationError

KEY = "sk-planted-3141592653"
SECTION = f"[baseten]\nremote_provider = baseten\napi_key = {KEY}\nremote_url = https://app.baseten.co\n"


def trussrc(tmp_path: Path, content: str | bytes) -> dict[str, str]:
    """An environment whose home holds such a .trussrc."""
    (tmp_path / ".trussrc").write_bytes(content.encode() if isinstance(content, str) else content)
    return {"HOME": str(tmp_path)}


def everything_said(error: BaseException) -> str:
    """All text that an error and those behind it could show."""
    said: list[str] = []
    known: BaseException | None = error
    while known is not None:
        said += [str(known), repr(known), repr(vars(known)), *traceback.format_exception(known)]
        known = known.__cause__ or known.__context__
    return "\n".join(said)


def test_explicit_wins_over_everything(tmp_path: Path) -> None:
    environ = trussrc(tmp_path, SECTION) | {"BASETEN_API_KEY": "from-environment"}
    assert find_api_key("explicit", environ) == ApiKey(value="explicit", base_url=None, origin="the argument api_key")


def test_environment_wins_over_trussrc(tmp_path: Path) -> None:
    environ = trussrc(tmp_path, SECTION) | {"BASETEN_API_KEY": "from-environment"}
    assert find_api_key(None, environ) == ApiKey(value="from-environment", base_url=None, origin="BASETEN_API_KEY")


def test_trussrc_gives_key_and_api_host(tmp_path: Path) -> None:
    key = find_api_key(None, trussrc(tmp_path, SECTION))
    assert key == ApiKey(value=KEY, base_url="https://api.baseten.co", origin=f"{tmp_path}/.trussrc, section [baseten]")
    assert KEY not in repr(key)


def test_user_trussrc_path_moves_the_file(tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.ini"
    moved.write_text(SECTION)
    assert find_api_key(None, {"HOME": "/nowhere", "USER_TRUSSRC_PATH": str(moved)}).value == KEY
    assert find_api_key(None, {"HOME": str(tmp_path), "USER_TRUSSRC_PATH": "~/elsewhere.ini"}).value == KEY


def test_home_of_the_process_when_the_environment_names_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trussrc(tmp_path, SECTION)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_api_key(None, {}).value == KEY


def test_no_known_home_is_no_file() -> None:
    with pytest.raises(ConfigurationError, match="no API key"):
        find_api_key(None, {"USER_TRUSSRC_PATH": "~nobody-of-this-name/.trussrc"})


def test_real_environment_mapping(tmp_path: Path) -> None:
    """As a process of its own sees it."""
    code = "import os; from aiobaseten.api import find_api_key; print(find_api_key(None, os.environ).base_url)"
    environ = trussrc(tmp_path, SECTION.replace("https://app.baseten.co", "http://localhost:8000/"))
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "http://localhost:8000"


@pytest.mark.parametrize(
    ("remote_url", "base_url"),
    [
        ("https://app.baseten.co", "https://api.baseten.co"),
        ("https://app.baseten.co/", "https://api.baseten.co"),
        ("https://app.staging.baseten.co", "https://api.staging.baseten.co"),
        ("https://api.baseten.co", "https://api.baseten.co"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000/prefix/", "http://127.0.0.1:8000/prefix"),
        ("https://app.baseten.co.example.com", "https://app.baseten.co.example.com"),
        ("https://app.example.com", "https://app.example.com"),
    ],
)
def test_api_host_of_a_remote(tmp_path: Path, remote_url: str, base_url: str) -> None:
    environ = trussrc(tmp_path, SECTION.replace("https://app.baseten.co", remote_url))
    assert find_api_key(None, environ).base_url == base_url


def test_remote_without_url_leaves_the_host_open(tmp_path: Path) -> None:
    environ = trussrc(tmp_path, f"[work]\nremote_provider = baseten\napi_key = {KEY}\n")
    assert find_api_key(None, environ).base_url is None


def test_remote_named_baseten_among_several(tmp_path: Path) -> None:
    other = "[other]\nremote_provider = baseten\napi_key = other\n"
    assert find_api_key(None, trussrc(tmp_path, other + SECTION)).value == KEY


def test_only_baseten_remote_under_another_name(tmp_path: Path) -> None:
    content = f"[mine]\nremote_provider = baseten\napi_key = {KEY}\n[baseten]\nremote_provider = other\napi_key = wrong\n"
    assert find_api_key(None, trussrc(tmp_path, content)).value == KEY


def test_defaults_section_and_percent_signs(tmp_path: Path) -> None:
    content = "[DEFAULT]\nremote_provider = baseten\n[mine]\napi_key = a%b%%c\n"
    assert find_api_key(None, trussrc(tmp_path, content)).value == "a%b%%c"


def test_byte_order_mark_and_line_ends_of_other_systems(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + SECTION.replace("\n", "\r\n").encode()
    assert find_api_key(None, trussrc(tmp_path, content)).value == KEY


def test_several_remotes_are_listed(tmp_path: Path) -> None:
    sections = [f"[{name}]\nremote_provider = baseten\napi_key = {KEY}\n" for name in ("work", "home")]
    with pytest.raises(ConfigurationError, match=r"several remotes \(home, work\).*BASETEN_API_KEY") as caught:
        find_api_key(None, trussrc(tmp_path, "".join(sections)))
    assert KEY not in everything_said(caught.value)


@pytest.mark.parametrize("content", [None, "", "[other]\nremote_provider = elsewhere\napi_key = x\n", "# nothing\n"])
def test_no_key_anywhere(tmp_path: Path, content: str | None) -> None:
    environ = {"HOME": str(tmp_path)} if content is None else trussrc(tmp_path, content)
    with pytest.raises(ConfigurationError, match=r"no API key: pass api_key, set BASETEN_API_KEY.*\.trussrc"):
        find_api_key(None, environ)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"api_key = {KEY}\n", r"\.trussrc, line 1: a section in brackets"),
        (f"{SECTION}nonsense {KEY}\n", r"\.trussrc, line 5: is neither"),
        (f"{SECTION}\n{SECTION}", r"\.trussrc, line 6: there is another section"),
        (f"[baseten]\napi_key = {KEY}\napi_key = {KEY}\n", r"\.trussrc, line 3: this option is set twice in section \[baseten\]"),
        (b"[baseten]\napi_key = " + KEY.encode() + b"\xff\n", r"\.trussrc is not a text file in UTF-8"),
        (
            f"[baseten]\nremote_provider = baseten\nauth_type = oauth\noauth_access_token = {KEY}\n",
            r"section \[baseten\] holds no api_key",
        ),
        (
            f"[baseten]\nremote_provider = baseten\napi_key = {KEY} {KEY}\n",
            r"section \[baseten\] cannot be one: its character 22 of 43",
        ),
        ("[baseten]\nremote_provider = baseten\napi_key =\n", r"section \[baseten\] is empty"),
        (SECTION.replace("https://app", "http://app"), r"section \[baseten\]: remote_url: .* must begin with https"),
        (SECTION.replace("https://app", f"https://me:{KEY}@app"), r"remote_url: .* user name or password"),
        (SECTION.replace("https://app.baseten.co", f"https://me:{KEY}"), r"remote_url: .* must be an http or https URL"),
    ],
)
def test_unusable_trussrc(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        find_api_key(None, trussrc(tmp_path, content))
    assert KEY not in everything_said(caught.value)


def test_trussrc_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".trussrc").mkdir()
    with pytest.raises(ConfigurationError, match=r"\.trussrc cannot be read: Is a directory") as caught:
        find_api_key(None, {"HOME": str(tmp_path)})
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        (f"{KEY}\n", "character 22 of 22 is a line break"),
        (f" {KEY}", "character 1 of 22 is white space"),
        (f"{KEY[:3]}\x00{KEY[3:]}", "character 4 of 22 is a control character"),
        (f"{KEY}\x7f", "character 22 of 22 is a control character"),
        (f"{KEY}\u2026", "character 22 of 22 is not ASCII"),
        (f"{KEY}\u00a0", "character 22 of 22 is white space"),
        (b"bytes", "must be a string, not bytes"),
        (5, "must be a string, not int"),
    ],
)
def test_what_cannot_be_a_key(value: str, message: str) -> None:
    for find in (lambda: find_api_key(value, {}), lambda: find_api_key(None, {"BASETEN_API_KEY": value})):
        with pytest.raises(ConfigurationError, match=message) as caught:
            find()
        assert KEY not in everything_said(caught.value)


@given(st.text(max_size=20))
@example("plain-key_123")
def test_every_key_is_taken_as_it_is_or_refused(value: str) -> None:
    try:
        assert check_api_key(value, "here") == value
    except ConfigurationError:
        assert not value or not value.isascii() or not value.isprintable() or " " in value
    else:
        assert value.isascii()
        assert value.isprintable()
        assert " " not in value


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("https://api.baseten.co", "https://api.baseten.co"),
        ("https://api.baseten.co/", "https://api.baseten.co"),
        ("HTTPS://API.BASETEN.CO:8443/gateway/", "https://api.baseten.co:8443/gateway"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.8.9.1/x//", "http://127.8.9.1/x"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://m\u00fcnchen.example", "https://xn--mnchen-3ya.example"),
    ],
)
def test_good_base_url(url: str, checked: str) -> None:
    assert check_base_url(url) == checked
    assert check_base_url(checked) == checked


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must be an http or https URL"),
        ("api.baseten.co", "must be an http or https URL"),
        ("//api.baseten.co", "must be an http or https URL"),
        ("https://", "must be an http or https URL"),
        ("https:///path", "must be an http or https URL"),
        ("ftp://api.baseten.co", "must be an http or https URL"),
        ("https://api.baseten.co:99999", "must be an http or https URL"),
        ("https://api.baseten.co\n", "must be an http or https URL"),
        ("https://api baseten.co", "must be an http or https URL"),
        ("https://api.baseten.co\\@evil.example", "must be an http or https URL"),
        (f"https://{'a' * 64}.example", "must be an http or https URL"),
        ("https://a..example", "must be an http or https URL"),
        ("https://[::1", "must be an http or https URL"),
        (None, "must be an http or https URL"),
        (b"https://api.baseten.co", "must be an http or https URL"),
        (f"https://user:{KEY}@api.baseten.co", "api.baseten.co must not hold a user name"),
        (f"https://{KEY}@api.baseten.co", "api.baseten.co must not hold a user name"),
        (f"https://api.baseten.co?key={KEY}", "must not have a query"),
        ("https://api.baseten.co/?", "must not have a query"),
        ("https://api.baseten.co/#top", "must not have a query or fragment"),
        ("http://api.baseten.co", "must begin with https"),
        ("http://localhost.example.com", "must begin with https"),
        ("http://127.0.0.1.example.com", "must begin with https"),
        ("http://128.0.0.1", "must begin with https"),
        ("http://127.1", "must begin with https"),
        ("http://0.0.0.0:80", "must begin with https"),
        ("http://[::2]", "must begin with https"),
    ],
)
def test_bad_base_url(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_base_url(url)
    assert KEY not in everything_said(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"https?://[a-z0-9.@:/?#\[\]-]{0,20}", fullmatch=True))
def test_every_base_url_is_safe_or_refused(url: str) -> None:
    try:
        checked = check_base_url(url)
    except ConfigurationError:
        return
    assert checked.startswith(("https://", "http://localhost", "http://127.", "http://[::1]"))
    assert "@" not in checked.split("/")[2]
    assert check_base_url(checked) == checked
