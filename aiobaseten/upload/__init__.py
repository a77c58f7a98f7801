"""The data plane: an archive goes to the object store, in parallel parts where it is large."""

from aiobaseten.upload.engine import UploadEngine, UploadReceipt, UploadRehearsal
from aiobaseten.upload.flight import POOL_CLASSES
from aiobaseten.upload.log import PartialUpload, UploadLog
from aiobaseten.upload.s3 import S3
from aiobaseten.upload.s3_answers import PutPart
from aiobaseten.upload.transport import Transport

__all__ = [
    "POOL_CLASSES",
    "S3",
    "PartialUpload",
    "PutPart",
    "Transport",
    "UploadEngine",
    "UploadLog",
    "UploadReceipt",
    "UploadRehearsal",
]
