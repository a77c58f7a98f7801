"""The data plane: an archive goes to the object store, in parallel parts where it is large."""

from aiobaseten.upload.engine import UploadEngine, UploadReceipt
from aiobaseten.upload.io_thread import IoThread
from aiobaseten.upload.s3 import S3

__all__ = ["S3", "IoThread", "UploadEngine", "UploadReceipt"]
