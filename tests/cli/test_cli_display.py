from __future__ import annotations

import io

from rich.console import Console

from aiobaseten.cli.display import Bars, Lines, display_for
from aiobaseten.events import (
    CommitStarted,
    Committed,
    CredentialsRenewed,
    Event,
    PartUploaded,
    Prepared,
    PushFailed,
    PushStarted,
    Reconciling,
    Retrying,
    StatusChanged,
    UploadAborted,
    UploadCompleted,
    UploadRestarted,
    UploadStarted,
)

STORY: list[Event] = [
    PushStarted(push_id="1", name="[red]one[/red]", size_bytes=2048),
    PushStarted(push_id="2", name="two", size_bytes=None),
    Prepared(push_id="1", bucket="b", key="k"),
    UploadStarted(push_id="1", key="k", size_bytes=2048, part_size_bytes=1024, parts=2),
    PartUploaded(push_id="1", part_number=1, size_bytes=1024),
    Retrying(push_id="1", operation="UploadPart", attempt=1, delay_s=0.52, error="SlowDown"),
    CredentialsRenewed(push_id="1", same_key=False),
    UploadRestarted(push_id="1", key="k2"),
    PartUploaded(push_id="1", part_number=1, size_bytes=1024),
    PartUploaded(push_id="1", part_number=2, size_bytes=1024),
    UploadCompleted(push_id="1", key="k2", size_bytes=2048, parts=2, verified=True),
    CommitStarted(push_id="1", model_id=None, name="one"),
    Reconciling(push_id="1", error="connection lost"),
    Committed(push_id="1", model_id="m", deployment_id="d"),
    UploadAborted(push_id="2", key="k", upload_id="u-7", error="denied"),
    UploadAborted(push_id="2", key="k", upload_id="u-7", error=None),
    PushFailed(push_id="2", error="bad luck"),
    PushFailed(push_id="3", error="before it started"),
    StatusChanged(model_id="m", deployment_id="d", status="ACTIVE"),
]

TOLD = [
    "[red]one[/red]: UploadPart is tried again in 0.5 s, after: SlowDown",
    "[red]one[/red]: the upload credentials had expired and were renewed",
    "[red]one[/red]: the commit's answer was lost (connection lost); looking for the deployment",
    "two: the multipart upload u-7 could not be aborted: denied",
    "two: the multipart upload was aborted",
    "deployment d is ACTIVE",
]


def shown(display: Bars | Lines, output: io.StringIO) -> str:
    with display.showing():
        for event in STORY:
            display(event)
    return output.getvalue()


def test_lines_tell_what_is_worth_knowing() -> None:
    output = io.StringIO()
    display = display_for(Console(file=output, width=40))
    assert isinstance(display, Lines)
    lines = shown(display, output).splitlines()
    assert [line for line in lines if line in TOLD] == [
        TOLD[0],
        TOLD[1],
        TOLD[2],
        TOLD[3],
        TOLD[4],
        TOLD[5],
    ]
    assert "[red]one[/red]: starts, 2.0 KiB" in lines
    assert "two: starts" in lines
    assert "[red]one[/red]: the upload starts over" in lines
    assert "[red]one[/red]: uploaded, 2.0 KiB in 2 parts" in lines
    assert "[red]one[/red]: committed: model m, deployment d" in lines
    assert len(lines) == 11


def test_bars_on_a_terminal() -> None:
    output = io.StringIO()
    display = display_for(Console(file=output, width=160, force_terminal=True, color_system=None))
    assert isinstance(display, Bars)
    text = shown(display, output)
    for line in TOLD:
        assert line in text
    assert "2.0/2.0 KiB" in text
    assert "done" in text
    assert "failed" in text
