"""A small web application: says hello from its release folder, and tells whether it is healthy.

Started by deploy.sh on the port of a candidate. On SIGUSR1 (promote.sh) it also takes the public port, beside
whoever still serves there, so that no request finds the door closed.
"""

import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RELEASE = Path(sys.argv[1])
CANDIDATE_PORT, PUBLIC_PORT = int(sys.argv[2]), int(sys.argv[3])
GREETING = (RELEASE / "greeting.txt").read_text().strip()
BROKEN = (RELEASE / "broken").exists()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        healthy = not BROKEN
        status = 200 if healthy or self.path != "/healthz" else 500
        body = (GREETING if self.path == "/" else "ok" if healthy else "broken") + "\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def serve(port):
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def promote(*_):
    serve(PUBLIC_PORT)
    candidate.shutdown()
    candidate.server_close()


signal.signal(signal.SIGUSR1, promote)
(Path(os.environ["HELLO_HOME"]) / "candidate.pid").write_text(str(os.getpid()))
candidate = serve(CANDIDATE_PORT)
while True:
    signal.pause()
