"""Baseten's documented way to push a model without its command line: requests, tarfile and boto3, model by model.

As the page "Create a model with the REST API" shows it: prepare, a boto3 session with the credentials that prepare gave, its
`upload_file`, then the commit. The archive is a plain tar here, which the service takes too; to compress it would cost more.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import boto3
import requests
import yaml
from small_pushes import Service

HEADERS = {"Authorization": "Bearer benchmark"}
TIMEOUT_S = 60


def push(model: Path, name: str, service: Service) -> None:
    """Push a model directory as a new model."""
    deployment = {"config": yaml.safe_load((model / "config.yaml").read_text())}
    prepared = _post(service, "/v1/prepare_model_upload", {"name": name, "deployment": deployment})
    with tempfile.NamedTemporaryFile(suffix=".tgz") as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(model, arcname=".")
        archive.flush()
        credentials = prepared["creds"]
        session = boto3.Session(
            aws_access_key_id=credentials["aws_access_key_id"],
            aws_secret_access_key=credentials["aws_secret_access_key"],
            aws_session_token=credentials["aws_session_token"],
            region_name=prepared["s3_region"],
        )
        store: Any = session.client("s3", endpoint_url=service.s3_url, verify=service.ca_bundle)
        store.upload_file(archive.name, prepared["s3_bucket"], prepared["s3_key"])
    source = {"kind": "model_archive", "name": name, "s3_key": prepared["s3_key"], "deployment": deployment}
    _post(service, "/v1/models", {"source": source})


def _post(service: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = requests.post(service.base_url + path, headers=HEADERS, json=body, verify=service.ca_bundle, timeout=TIMEOUT_S)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer
