from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiobaseten as ab
from aiobaseten.bulk import BulkReport, PushRecord, Throughput
from aiobaseten.cli.report_page import report_data, report_page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "--> <img src=x onerror=alert(1)>",
    "a\u2028b\u2029c\x00\x1b[31m",
    "{{data}} {{title}}",
    "\udcff\ud800",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe &amp; \"'`",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=20))
seconds = st.floats(0, 1e6)
records = st.builds(
    PushRecord,
    number=st.integers(1, 10**6),
    name=texts,
    source=texts,
    push_id=texts,
    state=st.sampled_from(["committed", "active", "failed", "skipped"]),
    attempts=st.integers(0, 9),
    size_bytes=st.none() | st.integers(0, 2**43),
    model_id=st.none() | texts,
    deployment_id=st.none() | texts,
    began_s=seconds,
    prepared_s=st.none() | seconds,
    uploaded_s=st.none() | seconds,
    committed_s=st.none() | seconds,
    ended_s=seconds,
    cause=st.none() | texts,
    error=st.none() | texts,
)
reports = st.builds(
    BulkReport,
    started_at=st.datetimes(timezones=st.just(UTC)),
    duration_s=seconds,
    records=st.lists(records, max_size=5),
    throughput=st.builds(Throughput, bucket_s=st.just(1.0), buckets=st.lists(st.integers(0, 2**40), max_size=9).map(tuple)),
    stopped_by=st.none() | texts.map(ab.ServerError),
)
EMPTY = BulkReport(
    started_at=datetime(2026, 3, 1, tzinfo=UTC), duration_s=0.0, records=(), throughput=Throughput(bucket_s=1.0, buckets=())
)


class Page(HTMLParser):
    """The parts of a page, as a browser would take it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self._path: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._path.append(dict(attrs).get("id") or tag)

    def handle_endtag(self, tag: str) -> None:
        self._path.pop()

    def handle_data(self, data: str) -> None:
        if self._path:
            self.inside.setdefault(self._path[-1], []).append(data)

    def text_of(self, place: str) -> str:
        return "".join(self.inside[place])

    @property
    def data(self) -> Any:
        return json.loads(self.text_of("data"))


@given(reports, texts)
def test_the_page_holds_the_report_whatever_is_in_it(report: BulkReport, title: str) -> None:
    page = report_page(report, title=title)
    page.encode("utf-8")
    data = Page(page).data
    assert [PushRecord(**dict(zip(data["columns"], row, strict=True))) for row in data["rows"]] == list(report.records)
    throughput = data["throughput"]
    assert Throughput(bucket_s=throughput["bucket_s"], buckets=tuple(throughput["buckets"])) == report.throughput
    assert datetime.fromisoformat(data["started_at"]) == report.started_at
    assert data["duration_s"] == report.duration_s
    names = ("total", "succeeded", "skipped", "failed", "interrupted", "size_bytes")
    assert data["totals"] == {name: getattr(report, name) for name in names}
    if report.stopped_by is None:
        assert data["stopped_by"] is None
    else:
        assert data["stopped_by"]["message"] == str(report.stopped_by)
        assert data["stopped_by"]["type"] == "ServerError"


@given(reports, texts)
def test_nothing_in_a_report_becomes_markup(report: BulkReport, title: str) -> None:
    kinds = [tag for tag, _ in Page(report_page(EMPTY, title="x")).elements]
    page = report_page(report, title=title)
    assert [tag for tag, _ in Page(page).elements] == kinds
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert data.isascii()
    assert data.isprintable()
    assert not set(data) & set("<>&")


@pytest.mark.parametrize("title", HOSTILE)
def test_the_title_is_text(title: str) -> None:
    shown = Page(report_page(EMPTY, title=title)).text_of("title")
    assert shown.replace("\ufffd", "\x00") == title.encode("utf-8", "backslashreplace").decode()


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    text = report_page(EMPTY, title="x")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", text)
    links = [value for _, fields in page.elements for name, value in fields.items() if name in ("src", "href", "action", "srcset")]
    assert links == ["data:,"]


def test_the_page_lets_nothing_run_but_its_own_style_and_script() -> None:
    page = Page(report_page(EMPTY, title="x"))
    policy = next(fields["content"] for tag, fields in page.elements if fields.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def named(element: str) -> str:
        digest = hashlib.sha256(page.text_of(element).encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "style-src": named("style"),
        "script-src": named("script"),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [name for _, fields in page.elements for name in fields if name == "style" or name.startswith("on")]


def test_the_script_makes_text_and_no_markup() -> None:
    script = Page(report_page(EMPTY, title="x")).text_of("script")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", script)
    assert {fields.get("lang") for tag, fields in Page(report_page(EMPTY, title="x")).elements if tag == "html"} == {"en"}


def test_rows_follow_their_columns() -> None:
    record = PushRecord(
        number=1,
        name="m",
        source="./m",
        push_id="p",
        state="failed",
        attempts=2,
        began_s=0.5,
        ended_s=1.0,
        cause="ServerError",
        error="no",
    )
    data = report_data(attrs.evolve(EMPTY, records=[record]))
    assert data["columns"] == [field.name for field in attrs.fields(PushRecord)]
    assert dict(zip(data["columns"], data["rows"][0], strict=True)) == attrs.asdict(record)
