"""Bad input: a clear error for each, and nothing sent."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.clock import FakeClock
from support.meddling_proxy import MeddlingProxy, meddling_proxy
from support.model_dirs import model_archive, model_dir, tar_of

import aiobaseten as ab

pytestmark = pytest.mark.anyio


@dataclass
class Watched:
    """A client of a service that must not be called."""

    client: ab.Client
    service: MeddlingProxy


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    async with (
        meddling_proxy("http://127.0.0.1:9") as service,
        ab.Client("key", base_url=service.url, s3_endpoint_url=service.url) as client,
    ):
        yield Watched(client, service)
        assert service.seen == []


def with_config(path: Path, content: str | bytes) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "a list": ("- a\n- b\n", r"config\.yaml.*mapping"),
    "text": ("just words\n", r"config\.yaml.*mapping"),
    "empty": ("", r"config\.yaml"),
    "bad YAML": ("model_name: x\nfoo: [1, 2\nbar: 3\n", r"config\.yaml.*, line 3"),
    "tab": ("model_name: x\n\tfoo: 1\n", r"config\.yaml.*, line 2"),
    "binary": (b"\x00\xff\xfe\x93NUMPY", r"config\.yaml"),
    "no name": ("python_version: py311\n", r"\$\.name.*model_name"),
    "name of another type": ("model_name: 7\n", r"\$\.name.*model_name"),
    "blank name": ("model_name: '  '\n", r"\$\.name"),
    "number keys": ("model_name: x\nenv:\n  1: a\n", r"\$\.deployment\.config\.env.*key"),
    "not a number": ("model_name: x\nrate: .nan\n", r"\$\.deployment\.config\.rate.*finite"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
@pytest.mark.parametrize("call", ["push", "check"])
async def test_a_bad_config_in_a_directory(watched: Watched, tmp_path: Path, kind: str, call: str) -> None:
    content, message = BAD_CONFIGS[kind]
    directory = with_config(tmp_path / "model", content)
    with pytest.raises(ab.InvalidPush, match=message):
        await getattr(watched.client, call)(directory)


@pytest.mark.parametrize("kind", BAD_CONFIGS)
async def test_a_bad_config_in_an_archive(watched: Watched, kind: str) -> None:
    content, message = BAD_CONFIGS[kind]
    archive = tar_of([("config.yaml", content if isinstance(content, bytes) else content.encode())])
    with pytest.raises(ab.InvalidPush, match=message):
        await watched.client.push(ab.Push(archive))


async def test_no_config(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ab.ArchiveError, match=r"config\.yaml"):
        await watched.client.push(tmp_path)
    with pytest.raises(ab.ArchiveError, match=r"config\.yaml"):
        await watched.client.push(ab.Push(tar_of([("readme.txt", b"hello")])))


async def test_sources_that_are_none(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "empty.tar").touch()
    (tmp_path / "words.tar").write_text("not an archive at all")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "empty.tar", "empty"),
        (tmp_path / "words.tar", "tar"),
        (b"", "empty"),
        (Path("/dev/null"), "device"),
    ]
    for source, message in cases:
        with pytest.raises(ab.ArchiveError, match=message):
            await watched.client.push(ab.Push(source))
    for wrong in (7, None, ["a"], ab):
        with pytest.raises(ab.InvalidPush, match="path"):
            await watched.client.push(wrong)  # type: ignore[arg-type]
        with pytest.raises(ab.InvalidPush, match="path"):
            await watched.client.push(ab.Push(wrong))  # type: ignore[arg-type]


async def test_a_stream_needs_a_config(watched: Watched) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield model_archive("x")

    with pytest.raises(ab.ArchiveError, match="deployment"):
        await watched.client.push(ab.Push(chunks(), name="x"))


WRONG: dict[str, tuple[Callable[[Path], ab.Push], list[str]]] = {
    "both ids": (lambda path: ab.Push(path, name="a", model_id="b"), ["$.model_id"]),
    "team of an existing model": (lambda path: ab.Push(path, model_id="b", team_id="t"), ["$.team_id"]),
    "existing": (lambda path: ab.Push(path, existing="replace"), ["$.existing"]),  # type: ignore[arg-type]
    "download of an existing model": (
        lambda path: ab.Push(path, model_id="b", disable_archive_download=True),
        ["$.disable_archive_download"],
    ),
    "download of another type": (lambda path: ab.Push(path, disable_archive_download="no"), ["$.disable_archive_download"]),  # type: ignore[arg-type]
    "links": (lambda path: ab.Push(path, symlinks="drop"), ["$.symlinks"]),  # type: ignore[arg-type]
    "name of another type": (lambda path: ab.Push(path, name=7), ["$.name"]),  # type: ignore[arg-type]
    "deployment of another type": (lambda path: ab.Push(path, deployment={"config": {}}), ["$.deployment"]),  # type: ignore[arg-type]
    "labels of another type": (lambda path: ab.Push.from_directory(path, labels=["a"]), ["$.deployment.labels"]),
    "everything at once": (
        lambda path: ab.Push.from_directory(
            path,
            name="a",
            model_id="b",
            deploy_timeout_minutes=5,
            deployment_name="no spaces",
            instance_type_id="1x2",
            promotion_settings_override={},
            autoscaling_schedule_settings={},
        ),
        [
            "$.model_id",
            "$.deployment.deploy_timeout_minutes",
            "$.deployment.deployment_name",
            "$.deployment.instance_type_id",
            "$.deployment.autoscaling_schedule_settings",
            "$.deployment.promotion_settings_override",
        ],
    ),
    "development": (
        lambda path: ab.Push.from_directory(
            path, is_development=True, environment_name="p", preserve_env_instance_type=False, deployment_name="d"
        ),
        ["$.deployment.environment_name", "$.deployment.preserve_env_instance_type", "$.deployment.deployment_name"],
    ),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_every_broken_rule_is_told_at_once(watched: Watched, tmp_path: Path, kind: str) -> None:
    make, paths = WRONG[kind]
    push = make(model_dir(tmp_path / "model", "x"))
    with pytest.raises(ab.InvalidPush) as caught:
        await watched.client.push(push)
    assert [problem.path for problem in caught.value.problems] == paths
    assert not caught.value.retryable


async def test_an_unknown_setting(tmp_path: Path) -> None:
    with pytest.raises(ab.InvalidPush, match=r"\$\.deployment\.enviroment_name: is not a field.*environment_name"):
        ab.Push.from_directory(tmp_path, enviroment_name="p")


DEPLOYMENT = ab.DeploymentArchivePayload(config={})
RAW_REQUESTS: list[tuple[Callable[[ab.Client], Awaitable[object]], str]] = [
    (lambda client: client.prepare_model_upload({"name": "x"}), "$"),  # type: ignore[arg-type]  # callers without type checks
    (lambda client: client.prepare_model_upload(ab.PrepareModelUploadRequest(deployment=DEPLOYMENT)), "$.name"),
    (
        lambda client: client.prepare_model_upload(ab.PrepareModelUploadRequest(deployment=DEPLOYMENT, name="x", model_id="m")),
        "$.model_id",
    ),
    (
        lambda client: client.prepare_model_upload(
            ab.PrepareModelUploadRequest(deployment=ab.DeploymentArchivePayload(), name="x")
        ),
        "$.deployment.config",
    ),
    (
        lambda client: client.prepare_model_upload(
            ab.PrepareModelUploadRequest(deployment=DEPLOYMENT, model_id="m", is_development=True)
        ),
        "$.is_development",
    ),
    (lambda client: client.create_model(ab.ModelArchiveSource(name=" ", deployment=DEPLOYMENT)), "$.name"),
    (lambda client: client.create_model(ab.ModelArchiveSource(name="x", s3_key="", deployment=DEPLOYMENT)), "$.s3_key"),
    (lambda client: client.create_model(ab.ModelArchiveSource(name="x", deployment=DEPLOYMENT), team_id=""), "team_id"),
    (lambda client: client.create_deployment("", ab.DeploymentArchiveSource(deployment=DEPLOYMENT)), "model_id"),
    (
        lambda client: client.create_deployment("m", ab.DeploymentArchiveSource(deployment=None)),  # type: ignore[arg-type]  # the same
        "$.deployment",
    ),
    (lambda client: client.get_deployment("", "d"), "model_id"),
]


@pytest.mark.parametrize(("call", "path"), RAW_REQUESTS)
async def test_raw_requests_are_checked_too(watched: Watched, call: Callable[[ab.Client], Awaitable[object]], path: str) -> None:
    with pytest.raises(ab.InvalidPush) as caught:
        await call(watched.client)
    assert [problem.path for problem in caught.value.problems] == [path]


async def test_an_upload_to_nowhere(watched: Watched) -> None:
    with pytest.raises(ab.InvalidPush, match="target"):
        await watched.client.upload(None, b"archive")


async def test_an_unreachable_host(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = ab.Client("key", base_url=url)
        client._clock = FakeClock().clock
        async with client:
            with pytest.raises(ab.TransportError, match=r"cannot connect to 127\.0\.0\.1") as caught:
                await client.push(model_dir(tmp_path / "model", "x"))
    assert caught.value.retryable
    assert caught.value.__cause__ is not None


async def test_a_client_must_be_open_and_on_its_loop(tmp_path: Path) -> None:
    client = ab.Client("key")
    with pytest.raises(ab.ConfigurationError, match="async with"):
        await client.push(tmp_path)
    async with client:
        with pytest.raises(ab.ConfigurationError, match="only once"):
            await client.__aenter__()
    with pytest.raises(ab.ConfigurationError, match="async with"):
        await client.list_models()
    with pytest.raises(ab.ConfigurationError, match="only once"):
        await client.__aenter__()


async def test_a_client_belongs_to_one_loop() -> None:
    async with ab.Client("key") as client:
        with pytest.raises(ab.ConfigurationError, match="another event loop"):
            await anyio.to_thread.run_sync(anyio.run, client.list_models)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api_key": ""}, "empty"),
        ({"api_key": "a\nb"}, "line break"),
        ({"base_url": "http://example.com"}, "https"),
        ({"base_url": "nonsense"}, "URL"),
        ({"s3_endpoint_url": "s3.example.com"}, "S3 endpoint"),
        ({"s3_endpoint_url": "https://x/?y"}, "S3 endpoint"),
        ({"s3_endpoint_url": "https://a..b"}, "S3 endpoint"),
        ({"s3_endpoint_url": "https://me:pass@x"}, "S3 endpoint at x must not"),
        ({"options": {"requests_per_s": 1}}, "options must be an Options"),
    ],
)
def test_arguments_of_a_client(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=message):
        ab.Client(**({"api_key": "key"} | arguments))


async def test_the_auth_scheme() -> None:
    with pytest.raises(ab.ConfigurationError, match="Bearer"):
        async with ab.Client("key", auth_scheme="Basic"):  # type: ignore[arg-type]
            pytest.fail("opened")


async def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "from-the-environment")
    monkeypatch.setenv("AIOBASETEN_BASE_URL", "https://example.com/api/")
    assert repr(ab.Client()) == "<Client https://example.com/api>"
    assert repr(ab.Client(base_url="https://other.example.com")) == "<Client https://other.example.com>"
    monkeypatch.setenv("AIOBASETEN_S3_ENDPOINT_URL", "nonsense")
    with pytest.raises(ab.ConfigurationError, match="S3 endpoint"):
        ab.Client()
