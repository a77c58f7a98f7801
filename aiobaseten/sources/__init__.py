"""What can be uploaded: a model directory, an archive file, an archive in memory, or an async iterator of an archive's chunks.

`open_source` makes a `Source` of any of them: known in size and readable at any offset, in parallel and again, but for an iterator.
A model directory is read as the tar archive that it would be, and never written as one.
"""

from __future__ import annotations

from aiobaseten.sources.base import Ignored, ModelConfig, Source, model_name_in
from aiobaseten.sources.opening import SourceLike, open_source

__all__ = ["Ignored", "ModelConfig", "Source", "SourceLike", "model_name_in", "open_source"]
