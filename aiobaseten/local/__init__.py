"""A local stand-in for Baseten's upload service, to develop and test against: `LocalStack`.

It is an aiohttp.web application with the service's rules (`service`, `store`, `views`, `archive`) over a real SeaweedFS
(`seaweedfs`, `supervisor`, `object_store`). `FaultyStack` lets chosen calls to it go wrong, as the values in `faults` say
(`faulty`, `fault_plan`, `fault_proxy`, `faulty_client`, `calls`). All of it needs the extra ``local``:
``pip install 'aiobaseten[local]'``.
"""

from aiobaseten.local import faults
from aiobaseten.local.fault_plan import Struck
from aiobaseten.local.faulty import FaultyStack
from aiobaseten.local.object_store import AdminCredentials, LocalStackError, UnfinishedUpload
from aiobaseten.local.stack import LocalStack

__all__ = ["AdminCredentials", "FaultyStack", "LocalStack", "LocalStackError", "Struck", "UnfinishedUpload", "faults"]
