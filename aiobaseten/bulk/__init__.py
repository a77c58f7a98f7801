"""Many pushes in one run, under shared budgets, with a journal that outlives the process."""

from aiobaseten.bulk.fleet import Pushes, PushRun
from aiobaseten.bulk.journal import Journal
from aiobaseten.bulk.manifest import Manifest, ManifestEntry, load_manifest, manifest_schema
from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord, Throughput

__all__ = [
    "BulkReport",
    "Journal",
    "Manifest",
    "ManifestEntry",
    "PushOutcome",
    "PushRecord",
    "PushRun",
    "Pushes",
    "Throughput",
    "load_manifest",
    "manifest_schema",
]
