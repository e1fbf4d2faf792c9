"""A world in which every address is this host's: run in a network and mount namespace of its own, as root of it.

One web server on port 80 answers at any address and notes which one it was asked at; a name server on port 53, which
the process's own resolver asks, changes its mind at every question. So whatever a probe connects to is seen. Prints
what was connected to, as JSON: ``python -m tests.tasks.probes.trap RESOLV_CONF``.
"""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dns.message
import dns.rrset

from db.probes import KINDS, ProbePlan
from db.states import CheckKind
from tasks import probes
from tasks.addresses import refusal
from tasks.probes.net import Net
from tests.tasks.test_addresses import CORPUS

PUBLIC = "93.184.216.34"
TARGETS = [address for address in CORPUS if "%" not in address]
#: What a name answers, question by question, over and over; several addresses in one answer are one string.
NAMES = {
    "local.example.org.": [PUBLIC, "127.0.0.1"],
    "metadata.example.org.": [PUBLIC, "169.254.169.254"],
    "private.example.org.": [PUBLIC, PUBLIC, "10.0.0.1"],
    "mixed.example.org.": [f"{PUBLIC} 169.254.169.254", f"127.0.0.1 {PUBLIC}"],
    "inside.example.org.": ["169.254.169.254 127.0.0.1 10.0.0.1"],
}
LOOKS = 6


class Web(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> Any:
        sock, address = super().get_request()
        connected.append(sock.getsockname()[0].removeprefix("::ffff:"))
        return sock, address


class Answer(BaseHTTPRequestHandler):
    """``/to/N`` leads to the Nth target, ``/chain/N`` there by way of this server, anything else is well."""

    def do_GET(self) -> None:
        _, kind, *rest = [*self.path.split("/"), ""]
        if kind in ("to", "chain"):
            target = TARGETS[int(rest[0])]
            there = f"http://[{target}]/latest/" if ":" in target else f"http://{target}/latest/"
            self.send_response(302)
            self.send_header("Location", there if kind == "to" else f"http://{PUBLIC}/to/{rest[0]}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        query = dns.message.from_wire(data)
        asked = query.question[0]
        answer = dns.message.make_response(query)
        if asked.rdtype == dns.rdatatype.A:
            says = NAMES[str(asked.name)]
            with lock:
                addresses = says[asked_for[str(asked.name)] % len(says)].split()
                asked_for[str(asked.name)] += 1
            answer.answer.append(dns.rrset.from_text(asked.name, 0, "IN", "A", *addresses))
        sock.sendto(answer.to_wire(), self.client_address)


connected: list[str] = []
asked_for: Counter[str] = Counter()
lock = threading.Lock()


def look(urls: list[str]) -> Counter[str]:
    """One batch, nothing internal allowed; the counts of what was seen."""
    made = [KINDS[CheckKind.HTTP].model_validate({"url": url}) for url in urls]
    plans = [ProbePlan(number, CheckKind.HTTP, config, 5.0, {}, {}) for number, config in enumerate(made)]
    return Counter(each.status.value for each in probes.run(plans, Net(())).values())


def reach(address: str) -> bool:
    """Whether a connection that nobody judges gets there: what is not reached by a probe could have been."""
    try:
        with socket.create_connection((address, 80), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(1) != b""
    except OSError:
        return False


def main() -> int:
    subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
    for words in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
        subprocess.run(["ip", *words.split()], check=words.startswith("-6") is False)
    web, names = Web(("::", 80), Answer), socketserver.ThreadingUDPServer(("127.0.0.1", 53), Names)
    for server in (web, names):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    could = sum(map(reach, TARGETS))
    connected.clear()
    targets = [n for n, address in enumerate(TARGETS) if refusal(address)]
    said: Counter[str] = Counter()
    for start in range(0, len(targets), 100):
        said += look([f"http://{PUBLIC}/{kind}/{n}" for kind in ("to", "chain") for n in targets[start : start + 100]])
    redirects, rebinding = Counter(connected), Counter[str]()
    connected.clear()
    for _ in range(LOOKS):
        rebinding += look([f"http://{name.rstrip('.')}/" for name in NAMES])
    print(
        json.dumps({
            "could": could, "targets": len(targets), "redirects": redirects, "said": said, "asked": asked_for,
            "rebinding": rebinding, "names": Counter(connected),
        })
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
