from typing import Any


class Model:
    def predict(self, model_input: dict[str, Any]) -> dict[str, Any]:
        return {"echo": model_input}
