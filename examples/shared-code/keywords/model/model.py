from typing import Any

from textkit import keywords


class Model:
    def predict(self, model_input: dict[str, Any]) -> list[str]:
        return keywords(model_input["text"], model_input.get("limit", 5))
