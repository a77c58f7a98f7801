import json
import math
import os
import re
from pathlib import Path
from typing import Any


class Model:
    def __init__(self, data_dir: str | Path, **_: Any) -> None:
        self._weights_file = Path(data_dir) / "weights.json"
        self._minimum_confidence = float(os.environ.get("MINIMUM_CONFIDENCE", "0.6"))

    def load(self) -> None:
        weights = json.loads(self._weights_file.read_text(encoding="utf-8"))
        self._prior: dict[str, float] = weights["prior"]
        self._words: dict[str, dict[str, float]] = weights["words"]

    def predict(self, model_input: dict[str, Any]) -> dict[str, Any]:
        known = [word for word in re.findall(r"[a-z']+", model_input["text"].lower()) if word in self._words]
        scores = {label: prior + sum(self._words[word][label] for word in known) for label, prior in self._prior.items()}
        highest = max(scores.values())
        total = sum(math.exp(score - highest) for score in scores.values())
        confidences = {label: math.exp(score - highest) / total for label, score in scores.items()}
        label = max(confidences, key=confidences.__getitem__)
        sure = confidences[label] >= self._minimum_confidence
        return {"label": label if sure else "unsure", "confidences": confidences}
