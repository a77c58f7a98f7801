"""Signs what it is sent with the secret that the platform mounts."""

import hashlib
import hmac
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRETS = Path("/secrets")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"status": "ok"}) if self.path == "/health" else self.send_error(404)

    def do_POST(self) -> None:
        if self.path != "/predict":
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = (SECRETS / "signing_key").read_bytes().strip()
        self._answer({"signature": hmac.new(key, body, hashlib.sha256).hexdigest()})

    def _answer(self, payload: dict[str, str]) -> None:
        content = json.dumps(payload).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Handler).serve_forever()
