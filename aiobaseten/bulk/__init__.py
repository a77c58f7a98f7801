"""Many pushes in one run, under shared budgets, with a journal that outlives the process."""

from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord, Throughput

__all__ = ["BulkReport", "PushOutcome", "PushRecord", "Throughput"]
