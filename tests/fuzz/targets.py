"""What is fuzzed: one function for each kind of input from outside. Each takes bytes, and lets no error out but a finding.

`run.py` runs them under atheris; `test_fuzz_targets.py` runs them in the suite, over the seeds and over what Hypothesis makes up.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from botocore.session import get_session

from aiobaseten import rules
from aiobaseten._convert import Mismatch
from aiobaseten._redaction import keep_secret
from aiobaseten.api import bodies, endpoints
from aiobaseten.api.http import _serialise
from aiobaseten.api.keys import find_api_key
from aiobaseten.bulk.manifest_shape import Mistakes, add_broken_rules, read_shape
from aiobaseten.bulk.manifest_text import READERS
from aiobaseten.errors import BasetenError
from aiobaseten.models import DeploymentArchivePayload, PrepareModelUploadRequest, PrepareModelUploadResponse
from aiobaseten.sources.archive_config import find_config
from aiobaseten.sources.config import parse_config
from aiobaseten.sources.files import printable
from aiobaseten.sources.ignore import parse_rules
from aiobaseten.sources.layout import TarLayout, TextEntry
from aiobaseten.sources.safe_yaml import UnreadableText
from aiobaseten.upload.checksum import Checksums, algorithm_for
from aiobaseten.upload.s3 import parse_answer
from aiobaseten.upload.s3_answers import required, stored_object
from aiobaseten.upload.target import check_target
from aiobaseten.upload.transport import Answer

MAX_MESSAGE_CHARACTERS = 20_000
SECRET = "sk-planted-3141592653"
OPERATIONS = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "AbortMultipartUpload", "HeadObject")

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


class _Holder:
    """Has the secret, as a client has its key."""


_holder = _Holder()
keep_secret(_holder, SECRET)


def target(function: Target) -> Target:
    TARGETS[function.__name__.removeprefix("fuzz_")] = function
    return function


def check_message(text: str) -> None:
    """A message can be shown anywhere: printable lines, not too many of them, and no secret."""
    assert text.strip(), "an error without words"
    assert len(text) <= MAX_MESSAGE_CHARACTERS, f"a message of {len(text):,} characters"
    for line in text.split("\n"):
        assert line.isprintable(), f"not printable: {line[:200]!r}"
    assert SECRET not in text, "the message holds the secret"


@contextmanager
def refused() -> Iterator[None]:
    """Around what may be refused, with an error of this library that can be shown."""
    try:
        yield
    except (BasetenError, UnreadableText, Mismatch) as error:
        check_message(str(error))


@target
def fuzz_config_yaml(data: bytes) -> None:
    """``config.yaml``, from its bytes to the request that is sent."""
    with refused():
        config = parse_config(data, "config.yaml")
        model_config = config.model_config
        parse_config(config.dump_without_external_packages(), "config.yaml")
        assert all(map(os.fsencode, config.external_package_dirs))
        deployment = DeploymentArchivePayload(config=model_config.config, raw_config=model_config.raw)
        check_deployment(deployment, model_config.model_name)


def check_deployment(deployment: DeploymentArchivePayload, name: str | None) -> None:
    """What breaks no rule can be sent."""
    problems = rules.find_problems(PrepareModelUploadRequest(deployment=deployment, name=name or "a"))
    for problem in problems[:20]:
        check_message(str(problem))
    if not problems:
        json.loads(_serialise({"config": deployment.config, "raw_config": deployment.raw_config}))


@target
def fuzz_truss_ignore(data: bytes) -> None:
    """``.truss_ignore``: the first line is a path, the others are the rules that it is matched with."""
    path, _, content = data.partition(b"\n")
    with refused():
        ignore = parse_rules(content, ".truss_ignore")
        for is_directory in (False, True):
            line = ignore.match(path.decode("utf-8", "surrogateescape"), is_directory=is_directory)
            assert line is None or line in content.decode()


@target
def fuzz_manifest(data: bytes) -> None:
    """A manifest: the first byte says in which format."""
    if not data:
        return
    reader = list(READERS.values())[data[0] % len(READERS)]
    mistakes = Mistakes("deploy.yaml")
    with refused():
        text = reader(data[1:])
        mistakes.lines = text.lines
        defaults, shapes = read_shape(text, mistakes)
        for shape in shapes[:10]:
            add_broken_rules(shape, {"model_name": "a"}, defaults, mistakes, source="a")
    for problem in mistakes.in_order()[:100]:
        check_message(str(problem))


@cache
def scratch_file() -> Path:
    directory = tempfile.TemporaryDirectory()
    scratch_file.directory = directory  # type: ignore[attr-defined]  # kept until the process ends
    return Path(directory.name, "trussrc")


@target
def fuzz_trussrc(data: bytes) -> None:
    """``~/.trussrc``."""
    path = scratch_file()
    path.write_bytes(data)
    with refused():
        key = find_api_key(None, {"USER_TRUSSRC_PATH": str(path)})
        assert "value='***'" in repr(key)
        assert key.base_url is None or key.base_url.startswith(("https://", "http://"))


_READERS: list[Callable[[Any], Any]] = [
    endpoints._read_prepared,
    endpoints._read_models,
    endpoints._read_model,
    endpoints._read_deployments,
    endpoints._read_teams,
    endpoints._read_created,
]


@target
def fuzz_api_answer(data: bytes) -> None:
    """An answer of the service that should be what was asked for; where it is an upload target, what can be made of it."""
    value = bodies.parse(data)
    if value is bodies.NOT_JSON:
        return
    for read in _READERS:
        with refused():
            answer = read(value)
            if isinstance(answer, PrepareModelUploadResponse) and answer.target is not None:
                assert repr(answer.target.credentials).count("'***'") == 3
                check_target(answer.target)


@target
def fuzz_error_answer(data: bytes) -> None:
    """An answer that is an error: status, two headers, and the body."""
    head, _, body = data.partition(b"\n\n")
    lines = [line.decode("latin-1") for line in head.split(b"\n")] + ["", "", ""]
    status = 400 + sum(lines[0].encode()) % 200
    headers = {"Retry-After": lines[1], "x-request-id": lines[1], "Date": lines[2]}
    check_message(bodies.error_message(status, body))
    check_message(bodies.redirect_message(lines[1]))
    advice_s = bodies.retry_after_s(headers, body)
    assert advice_s is None or 0 <= advice_s <= bodies.MAX_RETRY_AFTER_S
    if request_id := bodies.request_id(headers):
        check_message(request_id)


@cache
def s3_shapes() -> dict[str, Any]:
    service = get_session().get_service_model("s3")
    return {operation: service.operation_model(operation).output_shape for operation in OPERATIONS}


@target
def fuzz_s3_answer(data: bytes) -> None:
    """An answer of the object store: operation and status, headers, and the body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    operation = OPERATIONS[sum(first) % len(OPERATIONS)]
    status = (200, 204, 301, 400, 403, 404, 500, 503)[sum(first) // len(OPERATIONS) % 8]
    headers = dict(line.decode("latin-1").partition(":")[::2] for line in lines)
    with refused():
        parsed = parse_answer(Answer(status=status, headers=headers, content=body), s3_shapes()[operation], operation)
        if operation == "CreateMultipartUpload":
            check_message(required(parsed, "UploadId", operation))
        elif operation in ("PutObject", "CompleteMultipartUpload"):
            stored_object(parsed, operation, Checksums(algorithm_for("crc64nvme"), 5))


def nothing_to_check() -> None:
    """Nobody cancels a target."""


@target
def fuzz_archive(data: bytes) -> None:
    """An archive, plain or gzip, that should have a config.yaml."""

    def read_at(offset: int, buffer: memoryview) -> int:
        piece = data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    with refused():
        parse_config(find_config(read_at, len(data), label="<bytes>", check=nothing_to_check), "config.yaml")


@target
def fuzz_file_names(data: bytes) -> None:
    """Names of files: each is in the archive as it is on disk, byte for byte."""
    given = {name.strip(b"/") for name in data.split(b"\0")}
    names = sorted(name for name in given if name and not {b"", b".", b".."} & set(name.split(b"/")))
    for name in names:
        check_message(f"{printable(os.fsdecode(name))}: is a name")
    layout = TarLayout(TextEntry(name=os.fsdecode(name), content=name) for name in names)
    archive = memoryview(bytearray(layout.size_bytes))
    assert layout.read_into(0, archive, there_is_no_file) == len(archive)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        found = {os.fsencode(member.name): tar.extractfile(member) for member in tar}
        assert sorted(found) == names
        assert all(file is not None and file.read() == name for name, file in found.items())


def there_is_no_file(*_: Any) -> None:
    raise AssertionError("no entry is a file on disk")
