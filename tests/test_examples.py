"""The model directories in examples/: Truss accepts them, and their models do what they say."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = sorted(EXAMPLES.rglob("config.yaml"))

READ_WITH_TRUSS = """
import json, pathlib, sys
from truss.base.truss_config import TrussConfig
print(json.dumps([TrussConfig.from_yaml(pathlib.Path(path)).model_name for path in sys.argv[1:]]))
"""


def config(directory: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / directory / "config.yaml").read_text(encoding="utf-8"))


def model(directory: str, **arguments: Any) -> Any:
    spec = importlib.util.spec_from_file_location("example_model", EXAMPLES / directory / "model" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model(**arguments)


def example_input(directory: str) -> dict[str, Any]:
    return config(directory)["model_metadata"]["example_model_input"]


@pytest.fixture
def textkit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The shared package, importable as it is where the model runs."""
    monkeypatch.syspath_prepend(EXAMPLES / "shared-code" / "packages")
    yield
    sys.modules.pop("textkit", None)


def test_each_is_named_after_its_directory() -> None:
    assert len(CONFIGS) == 6
    assert [yaml.safe_load(path.read_text(encoding="utf-8"))["model_name"] for path in CONFIGS] == [
        path.parent.name for path in CONFIGS
    ]


@pytest.mark.slow
def test_truss_accepts_each() -> None:
    python = os.environ.get("AIOBASETEN_TRUSS_PYTHON")
    assert python, "AIOBASETEN_TRUSS_PYTHON must name a Python that has truss: `nox -s tests` makes one"
    answer = subprocess.run([python, "-c", READ_WITH_TRUSS, *map(str, CONFIGS)], check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == [path.parent.name for path in CONFIGS]


def test_hello_echoes() -> None:
    assert model("hello").predict(example_input("hello")) == {"echo": {"greeting": "hello"}}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (example_input("text-classifier")["text"], "praise"),
        ("the box was broken and nobody answered", "complaint"),
        ("xylophone quartet", "unsure"),
    ],
)
def test_the_classifier_classifies(text: str, label: str) -> None:
    classifier = model("text-classifier", data_dir=EXAMPLES / "text-classifier" / "data", config={}, secrets={})
    classifier.load()
    answer = classifier.predict({"text": text})
    assert answer["label"] == label
    assert sum(answer["confidences"].values()) == pytest.approx(1)


def test_the_classifiers_weights_are_those_that_training_makes(tmp_path: Path) -> None:
    copy = tmp_path / "text-classifier"
    shutil.copytree(EXAMPLES / "text-classifier", copy)
    weights = copy / "data" / "weights.json"
    committed = weights.read_text(encoding="utf-8")
    weights.unlink()
    runpy.run_path(str(copy / "train.py"), run_name="__main__")
    assert weights.read_text(encoding="utf-8") == committed


@pytest.mark.usefixtures("textkit")
def test_the_models_that_share_code_use_it() -> None:
    assert model("shared-code/word-count").predict(example_input("shared-code/word-count")) == {"to": 2, "be": 2, "or": 1, "not": 1}
    assert model("shared-code/keywords").predict(example_input("shared-code/keywords")) == ["tide", "boats"]


def test_the_custom_server_answers_where_its_config_says(tmp_path: Path) -> None:
    (tmp_path / "signing_key").write_text("secret\n")
    handler = runpy.run_path(str(EXAMPLES / "custom-server" / "data" / "server.py"))["Handler"]
    handler.do_POST.__globals__["SECRETS"] = tmp_path
    handler.log_message = lambda *_: None
    endpoints = config("custom-server")["docker_server"]

    def ask(path: str, body: bytes | None = None) -> dict[str, str]:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{server.server_port}{path}", body
        ) as answer:
            return json.load(answer)

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert ask(endpoints["readiness_endpoint"]) == {"status": "ok"}
            assert ask(endpoints["liveness_endpoint"]) == {"status": "ok"}
            assert ask(endpoints["predict_endpoint"], b"text") == {
                "signature": hmac.new(b"secret", b"text", hashlib.sha256).hexdigest()
            }
            for body in (None, b"text"):
                with pytest.raises(urllib.error.HTTPError) as refusal:
                    ask("/elsewhere", body)
                refusal.value.close()
                assert refusal.value.code == 404
        finally:
            server.shutdown()
            thread.join()
