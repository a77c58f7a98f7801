"""Many pushes in one run, under shared budgets, with a journal that outlives the process."""

from aiobaseten.bulk.manifest import Manifest, ManifestEntry, load_manifest, manifest_schema
from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord, Throughput

__all__ = [
    "BulkReport",
    "Manifest",
    "ManifestEntry",
    "PushOutcome",
    "PushRecord",
    "Throughput",
    "load_manifest",
    "manifest_schema",
]
