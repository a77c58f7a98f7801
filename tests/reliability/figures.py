"""Where the measured figures of docs/reliability.md are kept, one JSON file for each kind of test."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[2] / "docs" / "reliability"


def save_figures(name: str, figures: dict[str, Any]) -> None:
    """Keep what was measured, with the day and the Python it was measured on."""
    FIGURES.mkdir(exist_ok=True)
    known = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    (FIGURES / f"{name}.json").write_text(json.dumps(known | figures, indent=1) + "\n", encoding="utf-8")
