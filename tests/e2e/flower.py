"""A Flower that a test has started, and whoever asks it."""

from __future__ import annotations

import base64
import http.client
import socket
from email.message import Message

from tests.e2e.platform import Platform
from tests.e2e.process import until


class Flower:
    """A real Flower on a loopback port, and everything that it has answered."""

    def __init__(self, platform: Platform, **environment: str) -> None:
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            self.port = door.getsockname()[1]
        self.answers: list[bytes] = []
        self.process = platform.start(
            "flower", "-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", f"--port={self.port}",
            FLOWER_BASIC_AUTH="ann:pass-word", **environment,
        )  # fmt: skip
        until(lambda: self.ask("/healthcheck")[0] == 200, "Flower answers")

    def ask(
        self, path: str, password: str | None = "pass-word", method: str = "GET", **headers: str
    ) -> tuple[int, Message, bytes]:
        """The status, the headers and the body; 0 while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if password is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()
        try:
            connection.request(method, path, body="{}" if method == "POST" else None, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except ConnectionRefusedError:
            return 0, Message(), b""
        finally:
            connection.close()
        self.answers.append(body)
        return response.status, response.headers, body

    def see(self, *paths: str) -> None:
        """Ask for pages that must be there."""
        for path in paths:
            assert self.ask(path)[0] == 200, path

    def look_around(self, worker: str, *tasks: str) -> None:
        """Every page and every answer of the API that shows something."""
        columns = "&columns%5B0%5D%5Bdata%5D=name&order%5B0%5D%5Bcolumn%5D=0&order%5B0%5D%5Bdir%5D=asc"
        self.see("/", "/workers", "/workers?refresh=1&json=1", f"/worker/{worker}", "/tasks", "/broker", "/metrics")
        self.see(f"/tasks/datatable?draw=1&start=0&length=50&search%5Bvalue%5D={columns}")
        self.see("/api/workers?refresh=1", "/api/tasks", "/api/task/types", "/api/queues/length")
        for task in tasks:
            self.see(f"/task/{task}", f"/api/task/info/{task}", f"/api/task/result/{task}")

    def knows(self, task: str, state: str) -> bool:
        return f'"state": "{state}"'.encode() in self.ask(f"/api/task/info/{task}")[2]
