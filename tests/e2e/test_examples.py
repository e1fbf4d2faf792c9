"""The examples of the command line's help that need workers, or run until they are stopped."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.platform import ROOT, Platform
from tests.e2e.process import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

OPS = [sys.executable, "-c", "from worker.cli import main; main()"]


class Typed:
    """`ops` as an admin of a running platform types it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        assert platform.user
        self.environment = platform.environment | {"OPS_USER": "ann"}

    def __call__(self, line: str) -> str:
        """Its output; it must have worked."""
        _, *words = shlex.split(line)
        done = subprocess.run(
            [*OPS, *words], env=self.environment, cwd=self.platform.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def typed(platform: Platform) -> Typed:
    platform.worker("w1", queues="deployments,checks,control")
    return Typed(platform)


def test_a_version_is_deployed_taken_back_and_tried_again(typed: Typed) -> None:
    typed.platform.rows("ALTER TABLE deployments ALTER id RESTART 41")
    typed("ops app add web -- /bin/true")
    typed("ops infra add production")
    typed("ops deploy web v1.2.2 --to production")
    typed("ops deploy web v1.2.3 --to production")
    assert typed.platform.deployment(42)["status"] == "success"
    typed("ops rollback web --to production")
    assert typed.platform.deployment(42)["status"] == "rolled_back"
    assert typed.platform.deployment(43)["version"] == "v1.2.2"


def test_a_deployment_that_failed_is_tried_again(typed: Typed) -> None:
    typed.platform.rows("ALTER TABLE deployments ALTER id RESTART 42")
    mended = typed.platform.folder / "mended"
    typed(f"ops app add web -- /bin/sh -c 'test -e {mended}'")
    typed("ops infra add production")
    typed("ops deploy web v1.2.3 --to production --detach")
    until(lambda: typed.platform.deployment(42)["status"] == "failed", "it has failed")
    mended.touch()
    typed("ops deployment retry 42")
    assert typed.platform.deployment(42)["status"] == "success"


def test_a_check_is_run_now(typed: Typed) -> None:
    typed.platform.beat()
    typed("ops check add site system disk --set path=/ --set down_above=101")
    assert "site" in typed("ops check run-now site")


def test_the_relay_rings_for_a_worker_that_nobody_rang(platform: Platform) -> None:
    typed = Typed(platform)
    typed("ops app add web -- /bin/true")
    typed("ops infra add production")
    relay = subprocess.Popen(
        [*OPS, *shlex.split("ops relay")[1:]], env=typed.environment, cwd=platform.folder, stderr=subprocess.PIPE
    )
    try:
        typed("ops deploy web v1 --to production --detach")
        until(lambda: platform.depth("deployments") >= 1, "it lies in the queue")
        platform.broker.flushall()
        until(lambda: platform.depth("deployments") >= 1, "the relay has rung again")
    finally:
        relay.send_signal(signal.SIGTERM)
        _, said = relay.communicate(timeout=60)
    assert (relay.returncode, b"Traceback" in said) == (0, False)


def test_a_hosts_key_is_scanned_and_pinned(platform: Platform) -> None:
    typed = Typed(platform)
    with ssh_server() as (port, fingerprint):
        typed("ops infra add production --driver ssh --set user=deploy --set key=ssh/deploy")
        typed(f"ops infra host add production web1 127.0.0.1 --port {port}")
        assert fingerprint in typed("ops infra host scan production web1 --trust")
    (row,) = platform.rows("SELECT host_key FROM hosts")
    assert row["host_key"].startswith("ssh-ed25519 ")


@contextmanager
def ssh_server() -> Iterator[tuple[int, str]]:
    """A server that shows its key, and lets nobody in; its port and the key's fingerprint."""
    import asyncssh

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    key = asyncssh.generate_private_key("ssh-ed25519")

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key])

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    try:
        yield server.get_port(), key.get_fingerprint()
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.slow
def test_the_demo_loses_nothing_and_runs_nothing_twice() -> None:
    home = Path(tempfile.mkdtemp(prefix="ops-demo-"))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "OPS_POSTGRES_BIN") if name in os.environ}
    environment = kept | {"OPS_DATA_DIR": str(home / ".ops"), "OPS_USER": "ann", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [*OPS, *shlex.split("ops demo")[1:]], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 unaccounted   0 run twice" in done.stdout
    finally:
        subprocess.run([*OPS, "down"], cwd=home, env=environment, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)
