"""Whole pushes against the real stack: the control plane's rules over SeaweedFS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import anyio
import attrs
import pytest
from support.model_dirs import contents_of, model_archive, model_dir, tar_of, tree_of

import aiobaseten as ab
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024


@pytest.fixture
async def client(local_stack: LocalStack) -> AsyncIterator[ab.Client]:
    async with local_stack.client() as opened:
        yield opened


@pytest.fixture(autouse=True)
async def no_upload_is_left(local_stack: LocalStack) -> AsyncIterator[None]:
    yield
    assert await local_stack.multipart_uploads() == []


async def stored(stack: LocalStack, result: ab.PushResult) -> bytes:
    assert result.upload is not None
    assert stack.deployment_key(result.deployment.id) == result.upload.key
    return await stack.read_object(result.upload.key)


async def test_a_model_directory_becomes_a_deployment(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str
) -> None:
    directory = model_dir(tmp_path / "model", name)
    (directory / "junk.log").write_text("left out by the default rules")
    result = await client.push(directory)
    assert result.model.name == name
    assert result.deployment.labels == {"aiobaseten-push-id": result.push_id}
    assert result.upload is not None
    assert result.upload.verified
    assert result.upload.parts == 1
    assert [ignored.path for ignored in result.ignored] == ["junk.log"]
    expected = tree_of(directory)
    del expected["junk.log"]
    assert contents_of(await stored(local_stack, result)) == expected
    deployment = await client.wait_until_active(result.model.id, result.deployment.id, timeout_s=30)
    assert deployment.status == "ACTIVE"


@pytest.mark.parametrize("size", [12 * MiB, 200 * MiB])
async def test_a_large_directory_goes_up_in_parts_and_reads_back_equal(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str, size: int
) -> None:
    directory = model_dir(tmp_path / "model", name, weights_bytes=size)
    result = await client.push(directory)
    assert result.upload is not None
    assert result.upload.parts > 1
    assert result.upload.verified
    assert contents_of(await stored(local_stack, result)) == tree_of(directory)


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_archive_file_with_a_config(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str, compressed: bool
) -> None:
    archive = tmp_path / "model.tgz"
    archive.write_bytes(model_archive(name, compressed=compressed))
    result = await client.push(str(archive))
    assert result.model.name == name
    assert await stored(local_stack, result) == archive.read_bytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes(local_stack: LocalStack, client: ab.Client, name: str, kind: type[bytes]) -> None:
    archive = model_archive(name)
    result = await client.push(ab.Push(kind(archive)))
    assert result.model.name == name
    assert await stored(local_stack, result) == archive


@pytest.mark.parametrize("weights", [0, 20 * MiB])
async def test_a_stream(local_stack: LocalStack, client: ab.Client, name: str, weights: int) -> None:
    archive = model_archive(name, weights_bytes=weights)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(archive), 300_000):
            yield archive[start : start + 300_000]

    deployment = ab.DeploymentArchivePayload(config={"model_name": name})
    result = await client.push(ab.Push(chunks(), deployment=deployment))
    assert result.model.name == name
    assert await stored(local_stack, result) == archive


async def test_a_name_that_exists_gets_a_new_deployment(client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    first = await client.push(directory)
    second = await client.push(directory)
    assert second.model.id == first.model.id
    assert second.deployment.id != first.deployment.id
    assert {deployment.id for deployment in await client.list_deployments(first.model.id)} == {
        first.deployment.id,
        second.deployment.id,
    }
    with pytest.raises(ab.InvalidPush, match=rf"\$\.name: .*{first.model.id}"):
        await client.push(ab.Push(directory, existing="error"))
    with pytest.raises(ab.InvalidPush, match=r"disable_archive_download"):
        await client.push(ab.Push(directory, disable_archive_download=True))


async def test_a_model_by_its_id(client: ab.Client, tmp_path: Path, name: str) -> None:
    first = await client.push(model_dir(tmp_path / "one", name, config="description: one\n"))
    second = await client.push(ab.Push(model_dir(tmp_path / "two", "another-name"), model_id=first.model.id))
    assert second.model.id == first.model.id
    assert second.deployment.model_id == first.model.id


async def test_a_team(client: ab.Client, tmp_path: Path, name: str) -> None:
    (team,) = await client.list_teams(name="research")
    directory = model_dir(tmp_path / "model", name)
    result = await client.push(ab.Push(directory, team_id=team.id))
    assert result.model.team_name == "research"
    again = await client.push(ab.Push(directory, team_id=team.id))
    assert again.model.id == result.model.id
    assert [model.id for model in await client.list_models(name=name, team_id=team.id)] == [result.model.id]


async def test_one_name_in_two_teams(client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    default, research = [(await client.list_teams(name=team))[0] for team in ("default", "research")]
    in_research = await client.push(ab.Push(directory, team_id=research.id))
    in_default = await client.push(ab.Push(directory, team_id=default.id))
    assert in_default.model.id != in_research.model.id
    unsaid = await client.push(directory)
    assert unsaid.model.id == in_default.model.id


async def test_development(client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    first = await client.push(ab.Push.from_directory(directory, is_development=True))
    assert first.deployment.is_development
    (directory / "model" / "model.py").write_text("class Model: ...\n")
    second = await client.push(ab.Push.from_directory(directory, is_development=True))
    assert second.deployment.id == first.deployment.id


async def test_every_setting_of_a_deployment(client: ab.Client, tmp_path: Path, name: str) -> None:
    push = ab.Push.from_directory(
        model_dir(tmp_path / "model", name),
        environment_name="production",
        deployment_name="v1.2-rc_1",
        labels={"owner": "me", "nested": {"deep": [1, None]}},
        deploy_timeout_minutes=30,
        preserve_env_instance_type=False,
        instance_type_id="1x2",
        autoscaling_settings={"min_replica": 1},
        promotion_settings_override={"rolling_deploy": True},
    )
    result = await client.push(push)
    assert result.deployment.name == "v1.2-rc_1"
    assert result.deployment.environment == "production"
    assert result.deployment.labels == {"owner": "me", "nested": {"deep": [1, None]}, "aiobaseten-push-id": result.push_id}


async def test_labels_may_bring_the_push_id(client: ab.Client, tmp_path: Path, name: str) -> None:
    push = ab.Push.from_directory(model_dir(tmp_path / "model", name), labels={"aiobaseten-push-id": "my-own"})
    assert (await client.push(push)).push_id == "my-own"


async def test_pushes_need_no_label(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    async with local_stack.client(options=ab.Options(tag_pushes=False)) as client:
        result = await client.push(model_dir(tmp_path / "model", name))
        assert not result.deployment.labels


async def test_a_dry_run_makes_nothing(local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name, weights_bytes=10_000)
    (directory / "notes.swp").write_text("x" * 100)
    checked = await client.check(ab.Push(directory))
    assert (checked.name, checked.model_id) == (name, None)
    assert checked.size_bytes is not None
    assert checked.size_bytes > 10_000
    assert [(ignored.path, ignored.rule, ignored.size_bytes) for ignored in checked.ignored] == [("notes.swp", "*.swp", 100)]
    assert await client.list_models(name=name) == ()
    pushed = await client.push(directory)
    assert pushed.upload is not None
    assert pushed.upload.size_bytes == checked.size_bytes
    assert (await client.check(directory)).model_id == pushed.model.id


async def test_a_dry_run_reads_nothing_of_a_stream(client: ab.Client, name: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        pytest.fail("read")
        yield b""

    checked = await client.check(ab.Push(chunks(), deployment=ab.DeploymentArchivePayload(config={"model_name": name})))
    assert (checked.name, checked.size_bytes) == (name, None)


async def test_what_the_service_refuses_is_refused_by_check_too(client: ab.Client, tmp_path: Path, name: str) -> None:
    push = ab.Push.from_directory(
        model_dir(tmp_path / "model", name), environment_name="nowhere", create_environment_if_missing=False
    )
    for call in (client.check, client.push):
        with pytest.raises(ab.ApiError, match="nowhere") as caught:
            await call(push)
        assert caught.value.status == 400


@pytest.mark.parametrize("auth_scheme", ["Bearer", "Api-Key"])
async def test_both_auth_schemes(
    local_stack: LocalStack, tmp_path: Path, name: str, auth_scheme: Literal["Bearer", "Api-Key"]
) -> None:
    async with local_stack.client(auth_scheme=auth_scheme) as client:
        assert (await client.push(model_dir(tmp_path / "model", name))).model.name == name


async def test_a_wrong_key(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    async with local_stack.client(api_key="not-the-key") as client:
        with pytest.raises(ab.AuthenticationError) as caught:
            await client.push(model_dir(tmp_path / "model", name))
        assert caught.value.status == 401
        assert "not-the-key" not in f"{caught.value!r} {caught.value} {client!r}"


async def test_a_model_that_needs_no_archive(local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.yaml").write_text(f"model_name: {name}\n{CONFIG_ONLY}")
    result = await client.push(directory)
    assert result.upload is None
    assert local_stack.deployment_key(result.deployment.id) is None
    assert result.model.name == name


async def test_credentials_fit_one_key_only(local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str) -> None:
    config = {"model_name": name}
    request = ab.PrepareModelUploadRequest(name=name, deployment=ab.DeploymentArchivePayload(config=config))
    ours = (await client.prepare_model_upload(request)).target
    theirs = (await client.prepare_model_upload(attrs.evolve(request, name=f"{name}-2"))).target
    assert ours is not None
    assert theirs is not None
    archive = model_archive(name)
    for data in (archive, archive + bytes(9 * MiB)):
        with pytest.raises(ab.UploadDenied) as caught:
            await client.upload(attrs.evolve(theirs, credentials=ours.credentials), data)
        assert caught.value.code == "AccessDenied"
    wrong_secret = attrs.evolve(ours.credentials, aws_secret_access_key="wrong")
    with pytest.raises(ab.UploadDenied, match="SignatureDoesNotMatch"):
        await client.upload(attrs.evolve(ours, credentials=wrong_secret), archive)
    receipt = await client.upload(ours, archive)
    created = await client.create_model(ab.ModelArchiveSource(name=name, deployment=request.deployment, s3_key=receipt.key))
    assert created.model.name == name


async def test_two_pushes_at_once_with_credentials_of_their_own(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str
) -> None:
    directories = [model_dir(tmp_path / str(n), f"{name}-{n}", weights_bytes=12 * MiB, seed=n) for n in range(2)]
    results: dict[Path, ab.PushResult] = {}

    async def push(directory: Path) -> None:
        results[directory] = await client.push(directory)

    async with anyio.create_task_group() as tasks:
        for directory in directories:
            tasks.start_soon(push, directory)
    for directory, result in results.items():
        assert contents_of(await stored(local_stack, result)) == tree_of(directory)


@pytest.mark.parametrize("checksum", ["crc32c", None])
async def test_other_checksums(local_stack: LocalStack, tmp_path: Path, name: str, checksum: Literal["crc32c"] | None) -> None:
    options = ab.Options(transfer=ab.TransferOptions(checksum=checksum))
    async with local_stack.client(options=options) as client:
        directory = model_dir(tmp_path / "model", name, weights_bytes=12 * MiB)
        result = await client.push(directory)
        assert contents_of(await stored(local_stack, result)) == tree_of(directory)


async def test_the_users_aws_settings_have_no_say(
    local_stack: LocalStack, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in AWS_VARIABLES:
        monkeypatch.setenv(variable, "http://127.0.0.1:9/nonsense")
    async with local_stack.client() as client:
        directory = model_dir(tmp_path / "model", name, weights_bytes=12 * MiB)
        result = await client.push(directory)
    assert contents_of(await stored(local_stack, result)) == tree_of(directory)


async def test_a_bucket_or_region_that_prepare_did_not_name(client: ab.Client, name: str) -> None:
    request = ab.PrepareModelUploadRequest(name=name, deployment=ab.DeploymentArchivePayload(config={}))
    target = (await client.prepare_model_upload(request)).target
    assert target is not None
    with pytest.raises(ab.UploadError):
        await client.upload(attrs.evolve(target, bucket="not-the-bucket"), model_archive(name))


def aws_variables() -> Iterator[str]:
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, DEFAULT_S3_CONFIG_VARS

    yield from (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    )
    for _, names, _, _ in [*BOTOCORE_DEFAUT_SESSION_VARIABLES.values(), *DEFAULT_S3_CONFIG_VARS.values()]:
        yield from [names] if isinstance(names, str) else names or []


AWS_VARIABLES = sorted(set(aws_variables()))
CONFIG_ONLY = "bis_llm: {}\n"


async def test_a_source_that_is_not_a_model(client: ab.Client) -> None:
    with pytest.raises(ab.ApiError, match=r"config\.yaml"):
        await client.push(
            ab.Push(tar_of([("readme.txt", b"hello")]), name="x-no-config", deployment=ab.DeploymentArchivePayload(config={}))
        )
