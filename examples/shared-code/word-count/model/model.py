from collections import Counter
from typing import Any

from textkit import words


class Model:
    def predict(self, model_input: dict[str, Any]) -> dict[str, int]:
        return dict(Counter(words(model_input["text"])))
