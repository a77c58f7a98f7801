"""A run of many pushes as one HTML page that needs nothing else: totals, timeline, throughput, failures, every push.

What belongs to the page lies in the directory ``page``: its frame, its style, and its script in the parts named by `SCRIPTS`.
Names, paths and errors come from outside. They are in the page once, as JSON in which no character can end the element around it,
and the script makes text of them, never markup. The page's policy lets nothing run or load but what was written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib import resources
from typing import Any

import attrs

from aiobaseten.bulk.report import BulkReport, PushRecord
from aiobaseten.cli.outcome import error_as_json

SCRIPTS = ("data.js", "charts.js", "pointing.js", "lists.js", "table.js", "main.js")
"""The parts of the script, in the order in which they build on each other."""


def report_page(report: BulkReport, *, title: str) -> str:
    """The page of a report, to be written as UTF-8.

    :param title: plain text, such as the name of the manifest that was pushed
    """
    style, script = _part("page.css"), _script()
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}; img-src data:"
    filled = {
        "policy": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        "title": html.escape(title.encode("utf-8", "backslashreplace").decode()),
        "style": style,
        "data": _as_script_data(report_data(report)),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], _part("page.html"))


def report_data(report: BulkReport) -> dict[str, Any]:
    """What the page shows, as a JSON object. Records are rows, so that their fields' names are there once."""
    columns = [field.name for field in attrs.fields(PushRecord)]
    return {
        "started_at": report.started_at.isoformat(),
        "duration_s": report.duration_s,
        "totals": {
            "total": report.total,
            "succeeded": report.succeeded,
            "skipped": report.skipped,
            "failed": report.failed,
            "interrupted": report.interrupted,
            "size_bytes": report.size_bytes,
        },
        "throughput": {"bucket_s": report.throughput.bucket_s, "buckets": list(report.throughput.buckets)},
        "stopped_by": None if report.stopped_by is None else error_as_json(report.stopped_by),
        "columns": columns,
        "rows": [[getattr(record, column) for column in columns] for record in report.records],
    }


def _as_script_data(value: Any) -> str:
    """JSON in ASCII without the characters that mean something to HTML."""
    escapes = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
    return json.dumps(value, separators=(",", ":")).translate(escapes)


@cache
def _part(name: str) -> str:
    return resources.files("aiobaseten.cli").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """All parts of the script, in a block of their own so that nothing in them is global."""
    return '"use strict";\n{\n' + "\n".join(map(_part, SCRIPTS)) + "}\n"


def _hash(text: str) -> str:
    """How the page's policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
