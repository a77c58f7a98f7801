"""The control plane: Baseten's REST API, one call at a time.

`keys` finds the API key and its host, `http` sends one request and reads one answer under the `limiter`'s rate, `bodies` makes
sense of answers that are errors, and `endpoints` has one typed method per call, with its retries.
"""

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.api.http import ControlPlane
from aiobaseten.api.keys import ApiKey, check_base_url, find_api_key

__all__ = ["ApiKey", "ControlPlane", "Endpoints", "check_base_url", "find_api_key"]
