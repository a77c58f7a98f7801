"""Options refuse what cannot work, by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobaseten.errors import ConfigurationError
from aiobaseten.options import GiB, MiB, Options, RetryOptions, TimeoutOptions, TransferOptions

NOT_SECONDS = [-1, float("nan"), float("inf"), -float("inf"), True, "5", None, Decimal(1), 10**400]


def test_defaults() -> None:
    options = Options()
    assert options.requests_per_s == 100
    assert options.ca_bundle is None
    assert options.tag_pushes is True
    assert options.transfer.part_size_bytes is None
    assert options.transfer.max_connections is None
    assert options.transfer.memory_budget_bytes == 64 * MiB
    assert options.transfer.multipart_threshold_bytes == 8 * MiB
    assert options.transfer.checksum == "crc64nvme"
    assert options.timeouts.reconcile_s == 45
    assert options.timeouts.abort_s == 5
    assert options.timeouts.not_found_grace_s == 30
    assert options.timeouts.push_s is None


@pytest.mark.parametrize(
    "changes",
    [
        {"part_size_bytes": 5 * MiB},
        {"part_size_bytes": 5 * GiB},
        {"max_connections": 1},
        {"max_connections": 1024},
        {"memory_budget_bytes": 5 * MiB},
        {"memory_budget_bytes": 1024 * GiB},
        {"checksum": "crc32c"},
        {"checksum": None},
        {"multipart_threshold_bytes": 5 * GiB},
    ],
)
def test_good_transfer_options(changes: dict[str, Any]) -> None:
    assert attrs.asdict(TransferOptions(**changes)).items() >= changes.items()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("part_size_bytes", [0, -1, 5 * MiB - 1, 5 * GiB + 1, 8.0 * MiB, "8MiB", True]),
        ("max_connections", [0, -1, 1025, 4.0, "4", True]),
        ("memory_budget_bytes", [0, 5 * MiB - 1, None, 6.0 * MiB]),
        ("checksum", ["", "CRC32C", "md5", 5, []]),
        ("multipart_threshold_bytes", [0, 5 * MiB - 1, 5 * GiB + 1, None]),
    ],
)
def test_bad_transfer_options(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=rf"^TransferOptions\.{field} must be .*, not {'.*'}"):
            TransferOptions(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_attempts", [0, -1, 1.5, None, True, "3"]),
        ("initial_backoff_s", NOT_SECONDS),
        ("max_backoff_s", NOT_SECONDS),
    ],
)
def test_bad_retry_options(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=rf"^RetryOptions\.{field} must be"):
            RetryOptions(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(TimeoutOptions)])
def test_bad_timeouts(field: str) -> None:
    refused = [*NOT_SECONDS, *([] if field == "not_found_grace_s" else [0])]
    for value in [value for value in refused if field != "push_s" or value is not None]:
        with pytest.raises(ConfigurationError, match=rf"^TimeoutOptions\.{field} must be a finite number"):
            TimeoutOptions(**{field: value})
    assert getattr(TimeoutOptions(**{field: 0.25}), field) == 0.25


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("transfer", [None, {}, RetryOptions()]),
        ("retry", [None, {}, TransferOptions()]),
        ("timeouts", [None, 5]),
        ("requests_per_s", [0, -1, float("inf"), float("nan"), "100", True]),
        ("ca_bundle", [5, b"path", ["path"]]),
        ("tag_pushes", [None, 1, "yes"]),
    ],
)
def test_bad_options(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=rf"^Options\.{field} must be"):
            Options(**{field: value})


def test_ca_bundle_is_a_path(tmp_path: Path) -> None:
    assert Options(ca_bundle=str(tmp_path)).ca_bundle == tmp_path  # type: ignore[arg-type]  # the converter takes more
    assert Options(ca_bundle=tmp_path).ca_bundle == tmp_path


def test_options_are_values() -> None:
    assert Options() == Options()
    assert hash(Options(requests_per_s=5)) == hash(Options(requests_per_s=5))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Options().requests_per_s = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(TransferOptions())  # type: ignore[misc]


@given(value=st.floats() | st.integers() | st.text() | st.none() | st.booleans())
def test_any_rate_works_or_is_refused(value: Any) -> None:
    try:
        rate = Options(requests_per_s=value).requests_per_s
    except ConfigurationError:
        return
    assert rate is None or 0 < rate < float("inf")
