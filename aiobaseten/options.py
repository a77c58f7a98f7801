"""Settings of a `Client`, as frozen value objects.

Units stand in the names: ``_bytes``, ``_s`` (seconds), ``_per_s``. `None` means "chosen for you" for sizes and counts,
"no limit" for rates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

import attrs

from aiobaseten.errors import ConfigurationError

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

DEFAULT_MEMORY_BUDGET_BYTES = 64 * MiB

Checksum = Literal["crc64nvme", "crc32c"]

T = TypeVar("T")
Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _refuse(instance: object, attribute: attrs.Attribute[Any], value: object, wanted: str) -> None:
    raise ConfigurationError(f"{type(instance).__name__}.{attribute.name} must be {wanted}, not {value!r}")


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number that can be reckoned with: not infinite, not NaN, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number(*, above: float | None = None, at_least: float | None = None) -> Validator:
    bound = f"a finite number above {above}" if above is not None else f"a finite number of at least {at_least}"

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not is_finite_number(value) or (above is not None and value <= above) or (at_least is not None and value < at_least):
            _refuse(instance, attribute, value, bound)

    return check


def _whole(at_least: int, at_most: int | None = None) -> Validator:
    bound = f"a whole number from {at_least} to {at_most}" if at_most else f"a whole number of at least {at_least}"

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least or (at_most and value > at_most):
            _refuse(instance, attribute, value, bound)

    return check


def _instance_of(kind: type[Any]) -> Validator:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            _refuse(instance, attribute, value, f"{article} {kind.__name__}")

    return check


def _one_of(*choices: object) -> Validator:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            _refuse(instance, attribute, value, "one of " + ", ".join(map(repr, choices)))

    return check


def _or_none(check: Validator) -> Validator:
    def check_unless_none(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None:
            check(instance, attribute, value)

    return check_unless_none


PathLike = str | os.PathLike[str]


def _path_or_none(name: str, value: PathLike | None) -> Path | None:
    try:
        return None if value is None else Path(value)
    except TypeError as error:
        raise ConfigurationError(f"Options.{name} must be a path, not {value!r}") from error


def _ca_bundle_path(value: PathLike | None) -> Path | None:
    return _path_or_none("ca_bundle", value)


def _client_cert_path(value: PathLike | None) -> Path | None:
    return _path_or_none("client_cert", value)


@attrs.frozen(kw_only=True)
class TransferOptions:
    """How bytes travel to the object store.

    :param part_size_bytes: size of each part of a multipart upload, 5 MiB to 5 GiB (S3's limits); it grows where 10,000 parts
        of that size would not hold the archive. None: 8 MiB; 12 MiB for archives of 256 MiB or more, where memory
        allows and earlier uploads of the client were fast
    :param max_connections: parts in flight at once over all uploads of a client, 1 to 1024. Each needs its part in memory: more
        than `memory_budget_bytes` holds are of no use. None: 4 at first, on one or two processors one more than these, then as
        many as make uploads faster, up to 64
    :param memory_budget_bytes: the most bytes of archives held in memory at once over all uploads of a client; a part larger
        than the budget travels alone. The default, 64 MiB, is raised to a part for each connection where `max_connections` is None
        and more connections make uploads faster
    :param checksum: sent with each part, combined into the object's own and verified by the store; None turns it off, for
        stores that do not know it
    :param multipart_threshold_bytes: an archive of at least this size goes up in parts, a smaller one in a single PutObject
    :param bandwidth_limit_bytes_per_s: the most bytes of archives sent per second over all uploads of a client. None: unlimited
    """

    part_size_bytes: int | None = attrs.field(default=None, validator=_or_none(_whole(5 * MiB, 5 * GiB)))
    max_connections: int | None = attrs.field(default=None, validator=_or_none(_whole(1, 1024)))
    memory_budget_bytes: int = attrs.field(default=DEFAULT_MEMORY_BUDGET_BYTES, validator=_whole(5 * MiB))
    checksum: Checksum | None = attrs.field(default="crc64nvme", validator=_one_of("crc64nvme", "crc32c", None))
    multipart_threshold_bytes: int = attrs.field(default=8 * MiB, validator=_whole(5 * MiB, 5 * GiB))
    bandwidth_limit_bytes_per_s: float | None = attrs.field(default=None, validator=_or_none(_number(above=0)))


@attrs.frozen(kw_only=True)
class RetryOptions:
    """How often and how patiently a call that failed in passing is repeated, for both planes.

    The wait before try n+1 is random between 0 and ``min(max_backoff_s, initial_backoff_s * 2**(n-1))`` (full jitter), and never
    shorter than what the service asked for.

    :param max_attempts: tries in all, the first one included; 1 never repeats
    """

    max_attempts: int = attrs.field(default=6, validator=_whole(1))
    initial_backoff_s: float = attrs.field(default=0.5, validator=_number(at_least=0))
    max_backoff_s: float = attrs.field(default=20.0, validator=_number(at_least=0))


@attrs.frozen(kw_only=True)
class TimeoutOptions:
    """Limits in seconds.

    :param connect_s: to open a connection, TLS included
    :param read_s: without a byte from the other side
    :param complete_s: for CompleteMultipartUpload, which may take S3 minutes
    :param abort_s: for all clean-up after a failure or a cancellation, together
    :param reconcile_s: how long a commit whose outcome is unknown is looked for; new deployments may be invisible for 30 s
    :param not_found_grace_s: how long a new deployment may answer 404 before that counts
    :param push_s: for one push, from opening its source to the end of its commit. Then what it does is cancelled, its upload is
        aborted, and `DeadlineExceeded` raised, or `CommitUncertain` where its commit was under way. In a run of many, each attempt
        at a push has that long, and waiting for other pushes of the run does not count. None: no limit
    """

    connect_s: float = attrs.field(default=10.0, validator=_number(above=0))
    read_s: float = attrs.field(default=60.0, validator=_number(above=0))
    complete_s: float = attrs.field(default=600.0, validator=_number(above=0))
    abort_s: float = attrs.field(default=5.0, validator=_number(above=0))
    reconcile_s: float = attrs.field(default=45.0, validator=_number(above=0))
    not_found_grace_s: float = attrs.field(default=30.0, validator=_number(at_least=0))
    push_s: float | None = attrs.field(default=None, validator=_or_none(_number(above=0)))


@attrs.frozen(kw_only=True)
class Options:
    """All settings of a `Client`.

    :param transfer: how bytes travel to the object store
    :param retry: how often and how patiently a failed call is repeated
    :param timeouts: time limits, in seconds
    :param requests_per_s: the most calls per second and endpoint to the control plane, as a token bucket whose burst is one
        second's worth; Baseten's documented limit is 100. None: unlimited
    :param ca_bundle: a PEM file of certificate authorities to trust, for both planes, in place of the system's
    :param client_cert: a PEM file of a certificate and its unencrypted key, for both planes, where a gateway asks for one
    :param tag_pushes: put the label ``aiobaseten-push-id`` on each deployment, by which a commit whose answer was lost is found
        again
    """

    transfer: TransferOptions = attrs.field(factory=TransferOptions, validator=_instance_of(TransferOptions))
    retry: RetryOptions = attrs.field(factory=RetryOptions, validator=_instance_of(RetryOptions))
    timeouts: TimeoutOptions = attrs.field(factory=TimeoutOptions, validator=_instance_of(TimeoutOptions))
    requests_per_s: float | None = attrs.field(default=100.0, validator=_or_none(_number(above=0)))
    ca_bundle: Path | None = attrs.field(default=None, converter=_ca_bundle_path)
    client_cert: Path | None = attrs.field(default=None, converter=_client_cert_path)
    tag_pushes: bool = attrs.field(default=True, validator=_instance_of(bool))


@attrs.frozen(kw_only=True)
class RunOptions:
    """How a run of many pushes goes: what `Client.push_many` was given.

    :param fail_fast: the first failure stops the rest
    :param concurrency: pushes under way at once
    :param max_attempts: how often a push is begun in all where its failure may pass
    :param wait_timeout_s: how long to wait for each deployment to become active; None does not wait
    """

    fail_fast: bool = attrs.field(validator=_instance_of(bool))
    concurrency: int = attrs.field(validator=_whole(1, 10_000))
    max_attempts: int = attrs.field(validator=_whole(1))
    wait_timeout_s: float | None = attrs.field(validator=_or_none(_number(at_least=0)))
