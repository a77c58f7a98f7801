"""Many pushes in one run, under shared budgets, with a journal that outlives the process."""

from aiobaseten.bulk.fleet import Pushes, PushRun
from aiobaseten.bulk.journal import Journal
from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord, Throughput

__all__ = ["BulkReport", "Journal", "PushOutcome", "PushRecord", "PushRun", "Pushes", "Throughput"]
