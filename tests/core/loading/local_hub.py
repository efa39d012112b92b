"""The local Hugging Face cache's layout, and a hub on 127.0.0.1, for the loading tests."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/tiny-llama"


def put_in_cache(cache: Path, model: Path, repo: str = REPO, commit: str = COMMIT) -> Path:
    """Copy a model to where huggingface_hub keeps the snapshot that ``main`` points to."""
    store = cache / f"models--{repo.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(model, store / "snapshots" / commit))


class Hub(BaseHTTPRequestHandler):
    """Answers like the model hub; tests set the class attributes and read ``asked``."""

    model: Path
    status = 200
    error_code = ""
    error_message = ""
    extra_files: tuple[str, ...] = ()
    hidden_files: tuple[str, ...] = ()
    gated_files = False
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _names(self) -> list[str]:
        own = [path.name for path in self.model.iterdir() if path.name not in self.hidden_files]
        return sorted([*own, *self.extra_files])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path.startswith("/api/"):
            if self.status != 200:
                return self._answer(
                    self.status, b"{}", {"X-Error-Code": self.error_code, "X-Error-Message": self.error_message}
                )
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": name, "size": self._size(name), "oid": "0" * 40} for name in self._names()
                ]
                return self._answer(200, json.dumps(files).encode(), {})
            siblings = [{"rfilename": name} for name in self._names()]
            body = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
            return self._answer(200, json.dumps(body).encode(), {})
        if self.gated_files:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        file = self.model / self.path.rsplit("/", 1)[1]
        if not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        return self._answer(200, content, {"ETag": f'"{len(content):040x}"', "X-Repo-Commit": COMMIT})

    def _size(self, name: str) -> int:
        return (self.model / name).stat().st_size if (self.model / name).exists() else 10

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
