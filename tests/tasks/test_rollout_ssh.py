"""A rolling deployment over twenty real servers, of which three fail: order, stop, way back as the policy says."""

from __future__ import annotations

import signal

import pytest

from tests.tasks.hosted import Hosts, Run, hosts, needs_sshd

__all__ = ["hosts"]
pytestmark = [needs_sshd, pytest.mark.slow]

FAIL = """echo $OPS_VERSION >>../../log
[ $OPS_VERSION = 1.0 ] && exit 0
case $OPS_HOST in web6|web7|web14) exit 1 ;; esac"""
ROLLING = {"strategy": "rolling", "batch": 4}


@pytest.fixture
def twenty(hosts: Hosts) -> Hosts:
    hosts.add(20)
    run = hosts.deploy("1.0", command=FAIL)
    assert set(run.statuses().values()) == {"healthy"}
    return hosts


def numbers(run: Run, *statuses: str) -> list[int]:
    return sorted(int(name.removeprefix("web")) for name, said in run.statuses().items() if said in statuses)


def versions(hosts: Hosts) -> list[str]:
    return [str(each.current()).partition("-")[0] for each in hosts.servers]


def batches(run: Run) -> list[set[str]]:
    """The hosts of each batch, in the order in which they were said to be touched."""
    found: dict[int, set[str]] = {}
    for event in run.program.seen:
        if event["event"] == "host":
            for host in event["hosts"]:
                if "batch" in host:
                    found.setdefault(host["batch"], set()).add(host["name"])
    return [found[number] for number in sorted(found)]


def test_a_rolling_deployment_stops_after_the_batch_in_which_too_many_failed(twenty: Hosts):
    run = twenty.deploy("2.0", command=FAIL, rollout=ROLLING)
    assert run.end["outcome"] == "failed"
    assert batches(run) == [{f"web{n}" for n in range(start, start + 4)} for start in (1, 5)]
    assert numbers(run, "healthy") == [1, 2, 3, 4, 5, 8]
    assert numbers(run, "failed") == [6, 7]
    assert numbers(run, "skipped") == list(range(9, 21))
    assert versions(twenty) == ["2.0"] * 8 + ["1.0"] * 12
    last_of_first = max(i for i, (name, _) in enumerate(run.order) if name in batches(run)[0])
    assert last_of_first < min(i for i, (name, _) in enumerate(run.order) if name in batches(run)[1])


def test_failures_that_are_allowed_let_it_go_on_and_still_make_it_fail(twenty: Hosts):
    run = twenty.deploy("2.0", command=FAIL, rollout=ROLLING | {"batch": "25%", "max_failures": 3})
    assert run.end["outcome"] == "failed"
    assert numbers(run, "failed") == [6, 7, 14]
    assert len(numbers(run, "healthy")) == 17
    assert len(batches(run)) == 4
    assert versions(twenty) == ["2.0"] * 20


def test_what_was_switched_is_brought_back_the_last_batch_first(twenty: Hosts):
    good = "1.0-1-1"
    run = twenty.deploy("2.0", command=FAIL, rollout=ROLLING | {"max_failures": 2, "on_failure": "rollback"}, good=good)
    assert numbers(run, "rolled_back") == list(range(1, 17))
    assert numbers(run, "skipped") == [17, 18, 19, 20]
    assert versions(twenty) == ["1.0"] * 20
    assert {host.get("release") for host in run.hosts.values()} == {good, None}
    back = [name for name, said in run.order if said == "rolled_back"]
    assert [set(back[at : at + 4]) for at in range(0, 16, 4)] == batches(run)[::-1]
    log = (twenty.servers[0].app() / "log").read_text().split()
    assert log == ["1.0", "2.0", "1.0"]
    assert (twenty.servers[19].app() / "log").read_text().split() == ["1.0"]


def test_a_driver_that_is_killed_in_the_middle_leaves_what_it_said_and_the_next_one_converges(twenty: Hosts):
    ok = "true"
    run = twenty.begin(twenty.plan("2.0", command=ok, rollout=ROLLING, deployment=9))
    run.until("web10", "switched")
    run.program.process.send_signal(signal.SIGKILL)
    run.finish()
    for server in twenty.servers:
        said = run.statuses().get(server.name)
        if said in ("healthy", "switched"):
            assert server.current() == "2.0-9-2"
        elif said is None:  # of the others it is known that they were not touched
            assert server.current() == "1.0-1-1"
    again = twenty.deploy("2.0", command=ok, rollout=ROLLING, deployment=9)
    assert again.end["outcome"] == "ok"
    assert versions(twenty) == ["2.0"] * 20
    assert {host["previous_release"] for host in again.hosts.values()} == {"1.0-1-1"}
