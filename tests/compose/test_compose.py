"""The compose stack as its users have it: one stack, one test after another. See docs/compose.md."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator

import pytest

from tests.compose.conftest import REPORT
from tests.compose.stack import FINAL, ROOT, SERVICES, Stack, name_of, service_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("containers")]


@pytest.fixture
def load(stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """Deployments are asked for all the time, by a container that nobody kills."""
    stop = stack.folder / "evidence" / "stop"
    stop.unlink(missing_ok=True)
    before = stack.count()
    process = subprocess.Popen(
        ["docker", "compose", "run", "--rm", "-T", "--no-deps", "load"], cwd=stack.folder, env=stack.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        stack.wait(lambda: stack.count() > before, "the load has begun")
        yield process
    finally:
        stop.touch()
        process.wait(60)


def ask(port: int, path: str, password: str | None = None, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if password is not None:
        headers["Authorization"] = "Basic " + b64encode(password.encode()).decode()
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_every_container_runs_with_no_more_than_it_needs(stack: Stack) -> None:
    found = stack.containers(ended=True)
    assert {service_of(each) for each in found} == {*SERVICES, "migrate"}
    for each in found:
        host, config, name = each["HostConfig"], each["Config"], name_of(each)
        assert config["User"].partition(":")[0] not in ("", "0", "root"), name
        assert host["ReadonlyRootfs"] is True, name
        assert (host["CapAdd"] or [], host["CapDrop"]) == ([], ["ALL"]), name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Init"] is True, name
        assert host["Memory"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"]["max-size"] == "10m", name
        said = json.dumps(config)
        for secret in (stack.folder / "secrets").iterdir():
            value = secret.read_text().strip()
            assert value not in said, f"{name} shows {secret.name} to whoever may inspect it"
    for service in ("deployments", "beat", "flower", "postgres", "valkey"):
        for path in ("/usr/bin/x", "/etc/x"):
            assert stack.compose("exec", "-T", service, "sh", "-c", f"touch {path} 2>&1 || echo no").endswith("no\n")
        status = stack.compose("exec", "-T", service, "cat", "/proc/1/status")
        assert re.search(r"^Uid:\s+[1-9]", status, re.MULTILINE), service
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), service
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE), service


def test_only_flower_and_serve_are_published_on_loopback_and_ask_who_it_is(stack: Stack) -> None:
    published = {
        (service_of(each), binding["HostIp"], binding["HostPort"])
        for each in stack.containers()
        for bindings in each["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    assert published == {("flower", "127.0.0.1", str(stack.port)), ("serve", "127.0.0.1", str(stack.serve_port))}
    password = (stack.folder / "secrets" / "flower_basic_auth").read_text().strip()
    for path in ("/", "/tasks", "/metrics", "/healthcheck", "/api/workers", "/static/css/flower.css", "/nothing"):
        expected = 401 if not path.startswith(("/static", "/nothing")) else ask(stack.port, path)
        assert ask(stack.port, path) == expected, path
        assert ask(stack.port, path, "ops:wrong") == expected, path
    assert ask(stack.port, "/metrics", password) == 200
    assert ask(stack.port, "/tasks", password) == 200
    token = (stack.folder / "secrets" / "metrics_token").read_text().strip()
    assert ask(stack.serve_port, "/metrics") in (401, 403)
    assert ask(stack.serve_port, "/metrics", Authorization=f"Bearer {token}") == 200
    assert ask(stack.serve_port, "/healthz") == 200


def test_postgres_and_valkey_have_no_way_out_and_workers_have(stack: Stack) -> None:
    reached = {service_of(each): set(each["NetworkSettings"]["Networks"]) for each in stack.containers()}
    inside = f"{stack.name}_backend"
    assert reached["postgres"] == reached["valkey"] == reached["beat"] == {inside}
    assert f"{stack.name}_outside" in reached["deployments"]
    assert json.loads(stack.run("docker", "network", "inspect", inside))[0]["Internal"] is True


def test_the_doctor_finds_nothing_worse_than_a_note(stack: Stack) -> None:
    text = stack.compose("exec", "-T", "control", "ops", "doctor", "--offline", "--json", check=False)
    found = [json.loads(line) for line in text.splitlines()]
    assert len(found) > 15
    assert [each for each in found if each["severity"] not in ("ok", "note")] == []
    (transport,) = [each for each in found if each["check"] == "database transport"]
    assert "OPS_PRIVATE_HOSTS" in transport["says"]


def test_a_deployment_goes_through_it(stack: Stack) -> None:
    text = stack.compose("exec", "-T", "control", "ops", "deploy", "load", "v0", "--to", "place-0")
    assert "success" in text
    ((status, job),) = stack.sql("SELECT status, job_id FROM deployments")
    assert status == "success"
    assert stack.begun() == {f"begin {job}": 1, f"end {job}": 1}


def test_workers_scale_under_load_and_each_takes_its_part(stack: Stack, load: subprocess.Popen[bytes]) -> None:
    stack.compose("up", "-d", "--no-deps", "--no-recreate", "--scale", "deployments=3", "deployments")

    def workers() -> int:
        query = "SELECT count(DISTINCT worker) FROM jobs WHERE state = 'succeeded' AND task = 'tasks.deployments.run'"
        return int(stack.sql(query)[0][0])

    stack.wait(lambda: workers() == 3, "all three have deployed")
    stack.done.append("scaled  deployments to 3")
    assert load.poll() is None


def test_whatever_is_killed_and_stopped_nothing_is_lost_and_nothing_runs_twice(
    stack: Stack, load: subprocess.Popen[bytes]
) -> None:
    first, *others = sorted(stack.containers(*SERVICES), key=lambda each: service_of(each) != "deployments")
    for each in (first, *others):
        stack.kill(each)
        stack.wait(stack.is_up, f"everything runs after the death of {name_of(each)}")
        asked = stack.count()
        stack.wait(lambda asked=asked: stack.count() > asked, f"deployments go on after {name_of(each)}")
    killed = int(stack.sql("SELECT coalesce(max(id), 0) FROM deployments")[0][0])
    for each in stack.containers(*SERVICES):
        stack.stop_and_start(each)
        stack.wait(stack.is_up, f"the servers answer after the stop of {name_of(each)}")
    (stack.folder / "evidence" / "stop").touch()
    load.wait(60)
    stack.wait(lambda: stack.unfinished() == 0, "every deployment has ended", 240)
    check_evidence(stack)
    bad = stack.sql(f"SELECT id, error_message FROM deployments WHERE status <> 'success' AND id > {killed}")
    assert bad == [], "a stop in order interrupts nothing that ends in time"
    lost = stack.sql(
        "SELECT d.status, j.outcome, count(*) FROM deployments d JOIN jobs j ON j.id = d.job_id GROUP BY 1, 2"
    )
    REPORT.append("ends: " + ", ".join(f"{n} {status} ({outcome})" for status, outcome, n in sorted(lost)))


def test_a_rolling_restart_as_documented_disturbs_no_deployment(stack: Stack, load: subprocess.Popen[bytes]) -> None:
    stack.wait_healthy()
    text = (ROOT / "docs" / "compose.md").read_text("utf-8")
    (script,) = re.findall(r"<!-- run by tests/compose -->\n```sh\n(.*?)```", text, re.DOTALL)
    (last,) = stack.sql("SELECT max(id) FROM deployments")
    before = {each["Id"] for each in stack.containers("deployments")}
    stack.run("env", f"REPLICAS={len(before)}", "sh", "-euc", script)
    after = {each["Id"] for each in stack.containers("deployments")}
    assert (len(after), before & after) == (len(before), set())
    stack.done.append(f"rolled  {len(before)} deployments")
    (stack.folder / "evidence" / "stop").touch()
    load.wait(60)
    stack.wait(lambda: stack.unfinished() == 0, "every deployment has ended", 240)
    assert stack.sql(f"SELECT id, status FROM deployments WHERE status <> 'success' AND id > {last[0]}") == []
    check_evidence(stack)


def test_data_outlives_down_and_up_which_goes_through_pgbouncer_this_time(stack: Stack) -> None:
    assert stack.refused_by_broker() == [], "what the platform does with the broker it may do"
    count = "SELECT (SELECT count(*) FROM deployments), (SELECT count(*) FROM users)"
    before = stack.sql(count)
    stack.compose("down", "-t", "40")
    assert stack.containers(ended=True) == []
    stack.settings = {
        "COMPOSE_PROFILES": "pgbouncer", "OPS_COMPOSE_DATABASE": "database_url_pooled",
        "OPS_DATABASE_POOLER": "transaction",
    }  # fmt: skip
    stack.up()
    stack.done.append("down and up, with PgBouncer")
    assert stack.sql(count) == before
    assert "success" in stack.compose("exec", "-T", "control", "ops", "deploy", "load", "v9", "--to", "place-0")
    (pooler,) = stack.containers("pgbouncer")
    address = pooler["NetworkSettings"]["Networks"][f"{stack.name}_backend"]["IPAddress"]
    clients = stack.sql("SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE usename = 'ops_app'")
    assert clients == [[address]], "all of it goes through the pooler"
    REPORT.extend([*stack.done, "", *stack.table()])


def check_evidence(stack: Stack) -> None:
    """Outside: no effect began twice, and a success is one that ended."""
    seen = stack.begun()
    assert [word for word, count in seen.items() if count > 1] == [], "nothing ran twice"
    rows = stack.sql("SELECT status, job_id FROM deployments")
    missing = [job for status, job in rows if status == "success" and not seen[f"end {job}"]]
    assert missing == []
    trail = stack.sql(
        f"""SELECT count(*) FROM jobs j WHERE task = 'tasks.deployments.run' AND NOT EXISTS (SELECT FROM audit_logs a
        WHERE a.resource_type = 'job' AND a.resource_id = j.id::text AND a.action = 'job.enqueued')
        OR EXISTS (SELECT FROM deployments d WHERE d.job_id = j.id AND d.status NOT IN {FINAL})"""
    )
    assert trail == [["0"]]
    REPORT.append(f"{len(rows)} deployments, 0 unaccounted for, 0 run twice")
