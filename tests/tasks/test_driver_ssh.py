"""Releases put on real ssh servers, also where they are full, gone, somebody else, or cut off in the middle."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from db.rollouts import HostSpec
from db.specs import check
from tests.tasks.conftest import gone
from tests.tasks.hosted import Hosts, hosts, needs_sshd
from tests.tasks.repository import git, repository
from tests.tasks.sshd import Server, make_key

__all__ = ["hosts", "repository"]
pytestmark = needs_sshd


def artifact(hosts: Hosts, text: str = "hello") -> str:
    folder = hosts.folder / "build"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "sub" / "page").write_text(text)
    (folder / "run").write_text("#!/bin/sh\necho running $OPS_VERSION on $OPS_HOST in $(pwd)\n")
    (folder / "run").chmod(0o755)
    return "build"


def test_a_release_is_brought_switched_to_and_started(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.deploy("1.0", artifact=artifact(hosts), argv=["./run"])
    assert run.end["outcome"] == "ok", run.program.seen
    assert run.order == [("web1", each) for each in ("running", "running", "switched", "healthy")]
    assert server.current() == "1.0-1-1"
    assert (server.app() / "current" / "sub" / "page").read_text() == "hello"
    about = json.loads((server.app() / "current" / ".ops.json").read_text())
    assert (about["job"], about["attempt"], about["fence"], about["version"]) == ("job", 1, 1, "1.0")
    assert f"web1: running 1.0 on web1 in {hosts.folder}/srv/web/releases/1.0-1-1" in run.program.output()
    assert not list(server.app().glob("releases/.new-*"))


@pytest.mark.slow
def test_the_release_before_is_known_and_old_ones_go(hosts: Hosts):
    (server,) = hosts.add()
    for number in range(1, 7):
        run = hosts.deploy(f"{number}.0", settings={"keep": 2})
    assert (run.hosts["web1"]["release"], run.hosts["web1"]["previous_release"]) == ("6.0-6-6", "5.0-5-5")
    assert {each.name for each in (server.app() / "releases").iterdir()} == {"6.0-6-6", "5.0-5-5"}


@pytest.mark.slow
def test_a_second_attempt_sees_what_the_first_did(hosts: Hosts):
    (server,) = hosts.add()
    kept = artifact(hosts)
    hosts.deploy("1.0", artifact=kept)
    first = hosts.deploy("2.0", artifact=kept, command="exit 3", deployment=9)
    assert first.statuses() == {"web1": "failed"}
    assert first.message() == "command exited with 3"
    assert server.current() == first.hosts["web1"]["release"] == "2.0-9-2"
    again = hosts.deploy("2.0", artifact=kept, deployment=9)
    assert (again.hosts["web1"]["release"], again.hosts["web1"]["previous_release"]) == ("2.0-9-2", "1.0-1-1")
    assert "is there already" in str(again.program.seen)


def test_prepare_fails_before_anything_is_switched(hosts: Hosts):
    (server,) = hosts.add()
    hosts.deploy("1.0")
    run = hosts.deploy("2.0", steps={"prepare": [["sh", "-c", "echo no >&2; exit 7"]]})
    assert run.statuses() == {"web1": "failed"}
    assert run.message() == "prepare exited with 7"
    assert "release" not in run.hosts["web1"]
    assert server.current() == "1.0-1-1"
    assert {each.name for each in (server.app() / "releases").iterdir()} == {"1.0-1-1"}


def test_a_host_that_does_not_answer_is_unreachable_and_nothing_was_switched(hosts: Hosts):
    two = hosts.add(2)[1]
    two.stop()
    run = hosts.deploy("1.0")
    assert run.statuses() == {"web1": "healthy", "web2": "unreachable"}
    assert run.message("web2") == "connection refused"
    assert run.end["outcome"] == "failed"
    assert "1 of 2 hosts healthy; 1 unreachable (web2)" in run.end["message"]


def test_a_host_whose_key_is_another_one_is_not_talked_to(hosts: Hosts):
    (server,) = hosts.add()
    other = make_key(hosts.folder / "other").with_suffix(".pub").read_text()
    run = hosts.deploy("1.0", host={"host_key": other})
    assert run.statuses() == {"web1": "failed"}
    assert "host key is not the pinned one" in run.message()
    assert not server.app().exists()
    run = hosts.deploy("1.0", host={"host_key": None})
    assert "no host key is pinned" in run.message()


def test_a_pinned_key_that_is_none_is_told_as_that(hosts: Hosts):
    """One that looks like a key when it is saved ends neither the driver nor what it does on other hosts."""
    hosts.add()
    broken = base64.b64encode(b"\0\0\0\x0bssh-ed25519 and nothing that follows").decode()
    run = hosts.deploy("1.0", host={"host_key": check(HostSpec, {
        "name": "web1", "address": "127.0.0.1", "host_key": f"ssh-ed25519 {broken}",
    }).host_key})  # fmt: skip
    assert run.end["outcome"] == "failed"
    assert "the pinned host key is none" in run.hosts["web1"]["message"]


def test_a_key_that_the_host_refuses_is_told_as_that(hosts: Hosts):
    (server,) = hosts.add()
    (server.folder / "authorized").write_text("")
    assert "refuses user" in hosts.deploy("1.0").message()


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_what_runs_and_no_rest(hosts: Hosts):
    (server,) = hosts.add(memory="256k")
    hosts.deploy("1.0")
    run = hosts.deploy("2.0", artifact=artifact(hosts, "x" * 600_000))
    assert run.statuses() == {"web1": "failed"}
    assert "(0 kB are free there)" in run.message()
    assert server.current() == "1.0-1-1"
    assert {each.name for each in (server.app() / "releases").iterdir()} == {"1.0-1-1"}


def test_a_service_that_starts_and_dies_is_not_healthy_and_the_host_is_brought_back(hosts: Hosts):
    (server,) = hosts.add()
    hosts.deploy("1.0")
    command = "echo $OPS_VERSION >>started; sleep 0.1 & echo $! >../../pid; wait"
    health = ["sh", "-c", "[ $OPS_VERSION = 1.0 ] || kill -0 $(cat ../../pid)"]
    run = hosts.deploy(
        "2.0", command=command, steps={"health": health}, rollout={"on_failure": "rollback"}, good="1.0-1-1"
    )
    assert run.statuses() == {"web1": "rolled_back"}
    assert run.message() == "not healthy after 3 attempts: health exited with 1; back to 1.0-1-1"
    assert run.hosts["web1"]["release"] == server.current() == "1.0-1-1"
    assert (server.app() / "current" / "started").read_text() == "1.0\n"


def test_what_a_host_is_brought_back_to_is_asked_for_its_health_too(hosts: Hosts):
    """By then the database of the release before may have been moved on: it runs, and does not serve."""
    (server,) = hosts.add()
    hosts.deploy("1.0")
    health = ["sh", "-c", "echo $OPS_VERSION $OPS_RELEASE_FOLDER in $(basename $(pwd)) >>../../asked; exit 1"]
    run = hosts.deploy("2.0", steps={"health": health}, rollout={"on_failure": "rollback"}, good="1.0-1-1")
    assert run.statuses() == {"web1": "failed"}
    assert run.message().endswith("; back to 1.0-1-1, and then: not healthy after 3 attempts: health exited with 1")
    assert run.hosts["web1"]["release"] == server.current() == "1.0-1-1"
    asked = (server.app() / "asked").read_text().splitlines()
    assert asked == ["2.0 2.0-2-2 in 2.0-2-2"] * 3 + ["1.0 1.0-1-1 in 1.0-1-1"] * 3


def test_content_that_was_changed_since_it_was_asked_for_reaches_no_host(hosts: Hosts):
    (server,) = hosts.add()
    plan = hosts.plan("1.0", artifact=artifact(hosts))
    artifact(hosts, "changed")
    run = hosts.begin(plan)
    assert run.finish() == "failed"
    assert run.end["message"].startswith(
        f"the artifact is other content than was asked for ({plan['artifact']['digest']})"
    )
    assert run.hosts == {}
    assert not server.app().exists()


def test_a_commit_of_a_repository_is_brought(hosts: Hosts, repository: Path):
    (server,) = hosts.add()
    commit = git(repository, "rev-parse", "v1^{commit}")
    run = hosts.deploy("v1", artifact=f"git:{repository}")
    assert run.end["outcome"] == "ok", run.program.seen
    assert (server.app() / "current" / "page").read_text() == "one"
    assert f"git:{commit}" == hosts.plan("v1", artifact=f"git:{repository}")["artifact"]["digest"]


@pytest.mark.slow
def test_a_service_in_the_background_does_not_hold_the_host(hosts: Hosts):
    (server,) = hosts.add()
    command = "sleep 600 & echo $! >../../pid"
    try:
        assert hosts.deploy("1.0", command=command).end["outcome"] == "ok"
        assert hosts.deploy("2.0").end["outcome"] == "ok"
    finally:
        os.kill(int((server.app() / "pid").read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_a_gate_that_hangs_ends_by_its_own_time(hosts: Hosts):
    (server,) = hosts.add()
    with socket.socket() as silent:
        silent.bind((server.address, 0))
        silent.listen()
        run = hosts.deploy("1.0", url=f"http://{{host}}:{silent.getsockname()[1]}/healthz")
    assert run.statuses() == {"web1": "failed"}
    assert run.message() == "not healthy after 3 attempts: no answer within 1 s"
    assert server.current() == "1.0-1-1"


def test_a_connection_that_is_cut_while_the_command_runs_is_told_with_what_runs_there(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.begin(hosts.plan("1.0", command="echo begun; sleep 1; echo end >../../end"))
    run.until_printed("begun")
    server.cut()
    run.finish()
    assert run.statuses() == {"web1": "failed"}
    assert "cut while command ran" in run.message()
    assert run.hosts["web1"]["release"] == "1.0-1-1"
    # What was cut off goes on there, and the next deployment waits for it.
    assert hosts.deploy("2.0", command="test -f ../../end").end["outcome"] == "ok"


@pytest.mark.slow
def test_a_connection_that_is_cut_before_the_switch_is_tried_again(hosts: Hosts):
    (server,) = hosts.add()
    once = "test -f ../../once || { touch ../../once; echo begun; sleep 30; }"
    run = hosts.begin(hosts.plan("1.0", steps={"prepare": [["sh", "-c", once]]}, settings={"lock_seconds": 0.5}))
    run.until_printed("begun")
    server.cut()
    assert run.finish() == "failed"
    assert run.statuses() == {"web1": "failed"}
    assert "another deployment has held this host" in run.message()  # by what was cut off and still runs
    assert server.current() is None


def test_a_smaller_fence_than_the_last_one_is_refused(hosts: Hosts):
    (server,) = hosts.add()
    hosts.fence = 40
    hosts.deploy("2.0")
    run = hosts.deploy("1.0", fence=12)
    assert run.statuses() == {"web1": "failed"}
    assert run.message() == "refused: a newer deployment has been here (fence 41)"
    assert server.current() == "2.0-41-41"


def test_an_attempt_that_comes_back_late_changes_nothing(hosts: Hosts):
    """It was stopped before its switch; a newer one has been there since."""
    (server,) = hosts.add()
    late = hosts.begin(hosts.plan("1.0", command="echo late >../../late"))
    late.until("web1", "running")
    late.until("web1", "running", answer=False)  # prepared, and not told to go on
    number = late.program.seen[-1]["id"]
    server.cut()
    assert hosts.deploy("2.0").end["outcome"] == "ok"
    late.program.say({"ack": number})
    late.finish()
    assert late.statuses() == {"web1": "unknown"}
    assert server.current() == "2.0-2-2"
    assert not (server.app() / "late").exists()


@pytest.mark.slow
def test_hosts_that_share_a_lock_are_deployed_to_one_application_at_a_time(hosts: Hosts):
    (server,) = hosts.add()
    lock = {"lock": str(server.folder / "host.lock"), "lock_seconds": 0.3}
    run = hosts.begin(hosts.plan("1.0", command="echo begun; sleep 20", settings=lock))
    run.until_printed("begun")
    other = hosts.deploy("1.0", settings=lock, environment={"OPS_APPLICATION": "other"})
    assert "another deployment has held this host" in other.message()
    run.program.process.send_signal(signal.SIGKILL)
    run.program.process.wait()


def test_half_of_the_hosts_fail_and_each_is_told_for_itself(hosts: Hosts):
    hosts.add(4)
    run = hosts.deploy("1.0", command="case $OPS_HOST in web2|web4) exit 1;; esac")
    assert run.statuses() == {"web1": "healthy", "web2": "failed", "web3": "healthy", "web4": "failed"}
    assert run.end["message"] == "2 of 4 hosts healthy; 2 failed (web2, web4)"


@pytest.mark.slow
def test_a_stop_leaves_what_is_not_switched_as_it_was(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.begin(hosts.plan("1.0", steps={"prepare": [["sh", "-c", "echo begun; sleep 5"]]}))
    run.until_printed("begun")
    run.program.process.send_signal(signal.SIGTERM)
    assert run.finish() == "failed"
    assert run.statuses() == {"web1": "skipped"}
    assert server.current() is None


def test_a_driver_that_is_not_answered_touches_nothing(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.begin(hosts.plan("1.0"))
    run.until("web1", "running", answer=False)
    run.program.say({"refuse": run.program.seen[-1]["id"]})
    assert run.finish() == "failed"
    assert not server.app().exists()


def test_secrets_are_on_no_command_line_of_a_host(hosts: Hosts):
    hosts.add()
    run = hosts.begin(hosts.plan("1.0", command="echo begun; sleep 5", environment={"TOKEN": "hunter2-hidden"}))
    run.until_printed("begun")
    for shown in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"hunter2-hidden" not in shown.read_bytes(), shown
        except (FileNotFoundError, ProcessLookupError):
            continue
    run.program.process.send_signal(signal.SIGKILL)
    run.program.process.wait()


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "], ids=["TERM", "KILL"])
def test_a_stop_ends_what_runs_on_the_host_with_all_that_it_started(hosts: Hosts, ignores: str):
    (server,) = hosts.add()
    command = f"{ignores}sleep 600 & echo $! $$ >../../pids; echo begun; wait; sleep 600"
    run = hosts.begin(hosts.plan("1.0", steps={"prepare": [["sh", "-c", command]], "timeout_seconds": 600}))
    run.until_printed("begun")
    pids = [int(pid) for pid in (server.app() / "pids").read_text().split()]
    run.program.process.send_signal(signal.SIGTERM)
    assert run.finish() == "failed"
    gone(*pids)
    assert run.statuses() == {"web1": "skipped"}
    assert server.current() is None
    assert not list(server.app().glob("releases/.new-*"))
    assert hosts.deploy("2.0", settings={"lock_seconds": 0.5}).end["outcome"] == "ok"


@pytest.mark.slow
def test_a_stop_ends_a_command_that_was_switched_to_and_says_that_it_was(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.begin(hosts.plan("1.0", command="echo $$ >../../pid; echo begun; sleep 600"))
    run.until_printed("begun")
    run.program.process.send_signal(signal.SIGTERM)
    assert run.finish() == "failed"
    gone(int((server.app() / "pid").read_text()))
    assert run.statuses() == {"web1": "switched"}
    assert run.hosts["web1"]["release"] == server.current() == "1.0-1-1"


@pytest.mark.slow
@pytest.mark.parametrize("other", ["web", "shop"])
def test_a_driver_that_is_stopped_lets_the_host_go_and_changes_nothing_when_it_comes_back(hosts: Hosts, other: str):
    """Its connection stands, as that of a machine without power does: nothing but the silence tells."""
    (server,) = hosts.add()
    lock = {"lock": str(server.folder / "host.lock"), "lock_seconds": 60.0, "keepalive_seconds": 0.5}
    late = hosts.begin(hosts.plan("1.0", command="echo late >../../late", settings=lock))
    late.until("web1", "running")
    late.until("web1", "running", answer=False)  # prepared, and not told to go on
    number = late.program.seen[-1]["id"]
    late.program.process.send_signal(signal.SIGSTOP)
    try:
        after = hosts.deploy("2.0", settings=lock, environment={"OPS_APPLICATION": other})
        assert after.end["outcome"] == "ok", after.program.seen
    finally:
        late.program.process.send_signal(signal.SIGCONT)
    late.program.say({"ack": number})
    assert late.finish() == "failed"
    assert "another deployment has this host by now" in late.message()
    assert server.current() == ("2.0-2-2" if other == "web" else None)
    assert server.current("shop") == ("2.0-2-2" if other == "shop" else None)
    assert not (server.app() / "late").exists()


def test_a_host_that_falls_silent_is_noticed_by_the_connection(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.begin(hosts.plan("1.0", command="echo begun; sleep 600", settings={"keepalive_seconds": 0.5}))
    run.until_printed("begun")
    with server.frozen():
        assert run.finish() == "failed"  # and not when the step's time has run out
    assert run.message() == "the connection was cut while command ran"
    assert run.hosts["web1"]["release"] == server.current() == "1.0-1-1"


@pytest.mark.slow
def test_a_host_that_is_silent_before_the_switch_was_not_touched(hosts: Hosts):
    (server,) = hosts.add()
    waits = [["sh", "-c", "echo begun; sleep 600"]]
    settings = {"keepalive_seconds": 0.5, "connect_seconds": 0.5}
    run = hosts.begin(hosts.plan("1.0", steps={"prepare": waits}, settings=settings))
    run.until_printed("begun")
    with server.frozen():
        assert run.finish() == "failed"
    assert run.statuses() == {"web1": "unreachable"}
    assert server.current() is None


needs_sudo = pytest.mark.skipif(shutil.which("sudo") is None, reason="needs Debian's sudo")


def as_nobody(server: Server) -> dict[str, str]:
    """Let another user be the one that things run as."""
    for folder in (server.folder.parent, server.folder):
        folder.chmod(0o755)
    shutil.chown(server.base, "nobody")
    return {"sudo": "nobody"}


@needs_sudo
def test_another_user_does_it_all_by_sudo_without_a_terminal(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.deploy("1.0", artifact=artifact(hosts), command="id -un; ./run", settings=as_nobody(server))
    assert run.end["outcome"] == "ok", run.program.seen
    assert "web1: nobody\n" in run.program.output()
    assert "running 1.0 on web1" in run.program.output()
    made = [server.app(), *server.app().rglob("*")]
    assert {path.owner() for path in made if not path.is_symlink()} == {"nobody"}


@needs_sudo
def test_a_stop_ends_what_another_user_runs_by_sudo(hosts: Hosts):
    (server,) = hosts.add()
    prepare = [["sh", "-c", "echo $$ >../../pid; echo begun; sleep 600"]]
    run = hosts.begin(hosts.plan("1.0", steps={"prepare": prepare}, settings=as_nobody(server)))
    run.until_printed("begun")
    run.program.process.send_signal(signal.SIGTERM)
    assert run.finish() == "failed"
    gone(int((server.app() / "pid").read_text()))
    assert run.statuses() == {"web1": "skipped"}


@needs_sudo
def test_a_host_whose_sudo_asks_for_a_password_says_so_and_is_not_touched(hosts: Hosts):
    (server,) = hosts.add()
    server.replace("/etc/sudoers", "root ALL=(ALL:ALL) PASSWD: ALL\nDefaults rootpw, !root_sudo\n")
    run = hosts.deploy("1.0", settings=as_nobody(server))
    assert run.statuses() == {"web1": "failed"}
    assert "sudo:" in run.message()
    assert not server.app().exists()


def test_a_host_is_held_for_as_long_as_its_driver_lives(hosts: Hosts):
    (server,) = hosts.add()
    lock = {"lock": str(server.folder / "host.lock"), "lock_seconds": 0.1, "keepalive_seconds": 0.5}
    run = hosts.begin(hosts.plan("1.0", settings=lock))
    run.until("web1", "running")
    run.until("web1", "running", answer=False)  # nothing runs there any more, and it is not told to go on
    for _ in range(2):  # longer than some beats
        other = hosts.deploy("2.0", settings=lock, environment={"OPS_APPLICATION": "shop"})
        assert "another deployment has held this host" in other.message()
    run.program.say({"ack": run.program.seen[-1]["id"]})
    assert run.finish() == "ok", run.program.seen


def test_a_command_that_closes_its_output_is_waited_for(hosts: Hosts):
    (server,) = hosts.add()
    run = hosts.deploy("1.0", command="exec >&- 2>&-; sleep 1.5; touch ../../done; exit 3")
    assert run.message() == "command exited with 3"
    assert (server.app() / "done").exists()


def test_a_host_that_is_done_is_let_go_before_the_others_are(hosts: Hosts):
    """Else two rollouts that share hosts wait for each other, each with what the other wants."""
    second = hosts.add(2)[1]
    lock = {"lock": str(hosts.folder / "srv" / "host.lock"), "lock_seconds": 0.1}
    waits = '[ $OPS_HOST = web1 ] || { echo begun; while [ ! -e "$GO" ]; do sleep 0.05; done; }'
    rolling = {"strategy": "rolling", "batch": 1}
    go = {"GO": str(second.folder / "go")}
    run = hosts.begin(hosts.plan("1.0", command=waits, rollout=rolling, settings=lock, environment=go))
    run.until_printed("begun")
    rows = hosts.plan()["hosts"][:1]
    other = hosts.deploy("1.0", hosts=rows, settings=lock, environment={"OPS_APPLICATION": "shop"})
    assert other.end["outcome"] == "ok", other.program.seen
    (second.folder / "go").touch()
    assert run.finish() == "ok", run.program.seen
