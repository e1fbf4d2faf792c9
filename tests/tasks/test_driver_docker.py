"""On a real engine: the new container proves itself beside the old one, and at no moment does nobody serve."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from db.drivers import DockerSettings
from db.errors import InvalidInput
from db.fields import check
from db.frozen import freeze
from tasks.drivers import PROGRAMS
from tests.tasks.conftest import Program

docker = pytest.importorskip("docker")
IMAGE = "python:3.11-slim"
#: Serves its version on port 8000, healthy or not.
SERVE = """
import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["OPS_VERSION"].encode()
        self.send_response(int(os.environ.get("STATUS", "200")))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
print("up with", os.environ.get("TOKEN"), flush=True)
http.server.HTTPServer(("", 8000), H).serve_forever()
"""
URL = "http://{address}:8000/"
GATE = {"interval_seconds": 0.2, "timeout_seconds": 2, "attempts": 40}
Drive = Callable[..., Program]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The engine that answers, with an image that has a Python."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        if host.startswith("unix://"):  # the SDK leaves the socket open on which nobody answered
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(host.removeprefix("unix://"))
        made = docker.DockerClient(base_url=host, timeout=30)
        made.ping()
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"needs a Docker engine at DOCKER_HOST or its usual socket: {type(error).__name__}")
    try:
        try:
            made.images.get(IMAGE)
        except docker.errors.ImageNotFound:
            made.images.pull(IMAGE)
    except docker.errors.APIError:
        pytest.skip(f"needs the image {IMAGE}, or a registry that has it")
    yield made
    made.close()


@pytest.fixture
def place(engine) -> Iterator[str]:
    """A name of this test alone: of its application and network; everything of it is removed at the end."""
    name = f"ops-test-{uuid4().hex[:10]}"
    yield name
    of_it = {"label": f"ops.lock={name}"}
    for each in engine.containers.list(all=True, filters=of_it, ignore_removed=True):
        each.remove(force=True)
    for each in engine.volumes.list(filters=of_it):
        each.remove(force=True)
    for each in engine.networks.list(names=[name]):
        each.remove()


@pytest.fixture
def drive(program, place) -> Drive:
    """Start the driver with settings that a user could have saved."""

    def start(
        version: str = "v1", fence: int = 1, *, command: str = SERVE, url: str | None = URL, image: str = IMAGE,
        digest: str | None = None, environment: dict[str, str] | None = None, health: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Program:  # fmt: skip
        given = {"network": place, "settle_seconds": 1, "stop_seconds": 1, "host": os.environ.get("DOCKER_HOST")}
        names = {
            "OPS_VERSION": version, "OPS_FENCE": str(fence), "OPS_DEPLOYMENT_ID": str(fence), "OPS_JOB_ID": "job",
            "OPS_ATTEMPT": "1", "OPS_APPLICATION": place, "OPS_INFRASTRUCTURE": "here",
        }  # fmt: skip
        driver = program(PROGRAMS["docker"], DATABASE_URL="postgresql://leak")
        driver.say({
            "settings": check(DockerSettings, given | settings).model_dump(mode="json"), "secrets": {}, "image": image,
            "digest": digest, "command": ["python3", "-c", command], "environment": (environment or {}) | names,
            "health": GATE | (health or {}) | {"url": url}, "names": names, "lock": place,
        })  # fmt: skip
        return driver

    return start


def end_of(driver: Program) -> tuple[str, str]:
    *_, last = driver.finish()
    assert last["event"] == "end", driver.seen
    assert [event["event"] for event in driver.seen].count("end") == 1
    assert driver.process.returncode == {"ok": 0, "failed": 1, "unknown": 3}[last["outcome"]]
    return last["outcome"], last["message"]


def containers(engine, place: str) -> dict[str, tuple[str, bool]]:
    """By version: the state, and whether it is in the network under the alias."""
    found = {}
    for each in engine.containers.list(all=True, filters={"label": f"ops.lock={place}"}):
        each.reload()
        network = each.attrs["NetworkSettings"]["Networks"].get(place)
        found[each.labels["ops.version"]] = (each.status, network is not None and place in (network["Aliases"] or []))
    return found


def test_a_version_replaces_the_one_before_and_keeps_it_stopped(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    assert containers(engine, place) == {"v1": ("running", True)}
    driver = drive("v2", 2, environment={"TOKEN": "a-secret-value"})
    assert end_of(driver) == ("ok", "")
    assert containers(engine, place) == {"v1": ("exited", False), "v2": ("running", True)}
    said = driver.output("platform")
    assert said.index("healthy") < said.index(f"switched: {place} is {place}-2-2")
    (made,) = engine.containers.list(filters={"label": f"ops.lock={place}"})
    assert made.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    labels = {name: made.labels[f"ops.{name}"] for name in ("job", "attempt", "fence", "deployment", "application")}
    assert labels == {"job": "job", "attempt": "1", "fence": "2", "deployment": "2", "application": place}
    assert "a-secret-value" not in str(made.attrs["Args"]) + str(made.attrs["Path"])
    assert end_of(drive("v3", 3, keep=1)) == ("ok", "")
    assert containers(engine, place) == {"v2": ("exited", False), "v3": ("running", True)}, "one is kept"


#: Looks the alias up again and again until the second version answers there; says how often it was nobody's.
LOOK = """
import socket, sys, time, urllib.request
nobody, seen, end = 0, "", time.monotonic() + 90
while seen != "v2" and time.monotonic() < end:
    try:
        socket.getaddrinfo(sys.argv[1], 8000)
    except OSError:
        nobody += 1
    try:
        seen = urllib.request.urlopen(f"http://{sys.argv[1]}:8000/", timeout=1).read().decode()
    except OSError:
        pass
    print("looked", flush=True)
print("end", seen, nobody)
"""


def test_at_no_moment_of_the_switch_is_the_alias_nobodys(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    looking = engine.containers.create(IMAGE, ["python3", "-c", LOOK, place], network=place)
    try:
        looking.start()
        while not looking.logs(tail=1):
            looking.reload()
            assert looking.status in ("created", "running")
        assert end_of(drive("v2", 2)) == ("ok", "")
        looking.wait(timeout=100)
        assert looking.logs(tail=1).decode().split() == ["end", "v2", "0"]
    finally:
        looking.remove(force=True)


def test_a_version_that_is_not_healthy_is_removed_and_what_served_goes_on(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    driver = drive("v2", 2, environment={"STATUS": "503"}, health={"attempts": 15})
    outcome, message = end_of(driver)
    assert outcome == "failed"
    assert message.startswith("not healthy after ")
    assert message.endswith("it answered 503")
    assert "up with None" in driver.output("platform"), "its last words"
    assert containers(engine, place) == {"v1": ("running", True)}


def test_a_service_that_starts_and_dies_says_with_what(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    for restart in ("unless-stopped", "no"):
        driver = drive("v2", 2, command="print('no disk'); raise SystemExit(3)", url=None, restart=restart)
        outcome, message = end_of(driver)
        assert (outcome, message.startswith("the container exited with 3 within ")) == ("failed", True), message
        assert "no disk" in driver.output("platform")
    assert containers(engine, place) == {"v1": ("running", True)}


def test_a_smaller_fence_changes_nothing(engine, place, drive):
    assert end_of(drive("v2", 7)) == ("ok", "")
    outcome, message = end_of(drive("v1", 5))
    assert outcome == "failed"
    assert message == "a later deployment was here (fence 7); this one (fence 5) changes nothing"
    assert containers(engine, place) == {"v2": ("running", True)}
    # Also where the later one has failed and left no container.
    assert end_of(drive("v3", 9, image="ops-test-no-such-image:v3", pull="never"))[0] == "failed"
    assert "fence 9" in end_of(drive("v4", 8))[1]
    assert containers(engine, place) == {"v2": ("running", True)}


def test_what_an_attempt_that_was_killed_has_left_behind_is_removed(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    killed = drive("v2", 2, environment={"STATUS": "503"})
    killed.until("log", "beside what serves")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.process.wait()
    assert containers(engine, place) == {"v1": ("running", True), "v2": ("running", False)}
    driver = drive("v2", 3)
    assert end_of(driver) == ("ok", "")
    assert "which an earlier attempt has left behind" in driver.output("platform")
    assert containers(engine, place) == {"v1": ("exited", False), "v2": ("running", True)}
    assert len(engine.containers.list(all=True, filters={"label": f"ops.lock={place}"})) == 2


def test_a_stop_removes_the_candidate(engine, place, drive):
    assert end_of(drive("v1", 1)) == ("ok", "")
    driver = drive("v2", 2, environment={"STATUS": "503"}, health={"attempts": 1000})
    driver.until("log", "beside what serves")
    os.killpg(driver.pid, signal.SIGTERM)
    assert end_of(driver) == ("failed", "stopped; what served goes on")
    assert containers(engine, place) == {"v1": ("running", True)}


def test_an_image_is_the_one_that_was_asked_for(engine, place, drive):
    pinned = engine.images.get(IMAGE).id
    assert end_of(drive("v1", 1, digest=pinned)) == ("ok", "")
    other = "sha256:" + "0" * 64
    outcome, message = end_of(drive("v2", 2, digest=other, pull="never"))
    assert (outcome, message) == ("failed", "the image is not there, and is not to be pulled")
    assert containers(engine, place) == {"v1": ("running", True)}


def test_an_engine_that_is_not_there_is_one_line(drive):
    outcome, message = end_of(drive(host="unix:///nowhere/docker.sock"))
    assert outcome == "failed"
    assert message.startswith("the engine is not reached: ")
    assert "nowhere" not in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "tcp://h:2376"}, "settings: tcp:// needs tls"),
        ({"host": "http://h"}, "settings.host"),
        ({"host": "ssh://-oProxyCommand=x@h"}, "settings.host"),
        ({"host": "ssh://h -v"}, "settings.host"),
        ({"tls": {"ca": "a/b", "cert": "a/c", "key": "a/d"}}, "settings: tls needs a host"),
        ({"network": "a b"}, "settings.network"),
        ({"volumes": ["data"]}, "settings.volumes.0"),
        ({"registry_user": "x"}, "settings: registry_user and registry_password need each other"),
        ({"keep": 0}, "settings.keep"),
        ({"privileged": True}, "settings.privileged"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_saved(settings, said):
    with pytest.raises(InvalidInput) as refused:
        check(DockerSettings, settings, "settings")
    assert str(refused.value).startswith(said)


def test_an_application_without_an_image_is_refused_when_it_is_asked_for():
    for artifact in ({}, {"artifact": "releases/{version}"}):
        with pytest.raises(InvalidInput, match="the driver `docker` runs images"):
            freeze(
                command=["x"], working_directory=None, health_check_url=None, configuration=artifact, driver="docker",
                settings={},
            )  # fmt: skip
