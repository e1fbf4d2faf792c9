"""`ops status`: which database and broker (and why those), what runs, what waits, what fails, who is alive."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from db.connection import get_db_session
from db.errors import OpsError
from db.models import Deployment, Job, LedgerState, Process, Tick
from db.preflight import head_revision
from db.repositories.stats import StatsRepository
from db.seals import seal_keys
from db.services import sealing
from db.settings import find_data_dir, get_settings, origin
from worker.cli.failures import START_IT, explain, is_embedded
from worker.cli.output import ago, out
from worker.cli.output import show as cell
from worker.cli.trouble import print_trouble

BROKER_NAMES = ("OPS_BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")


def show() -> int:
    """Print it; the exit code is 0 when database and broker answer and somebody works, else 3."""
    status: dict[str, Any] = {"database": _database(), "broker": _broker()}
    if status["database"]["answers"]:
        status |= _inside()
    workers = [each for each in status.get("processes", []) if each["kind"] == "worker" and each["alive"]]
    healthy = bool(status["database"]["answers"] and status["broker"]["answers"] and workers)
    if out.json:
        out.record(status | {"healthy": healthy})
    else:
        _print(status)
    return 0 if healthy else 3


def _database() -> dict[str, Any]:
    found: dict[str, Any] = {"url": None, "because": origin("DATABASE_URL"), "answers": False, "problem": None}
    try:
        url = get_settings().require_database_url()
        found["url"] = make_url(url).set(drivername="postgresql").render_as_string(hide_password=True)
        found["because"] = _because(found["because"])
        from sqlalchemy import create_engine, pool, text

        from db.preflight import check_schema

        engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 3}, hide_parameters=True)
        with engine.connect() as connection:
            found["server"] = connection.scalar(text("SHOW server_version"))
            check_schema(connection)
        found["answers"] = True
        found["revision"] = head_revision()
    except Exception as error:  # noqa: BLE001 - the status says what is wrong, whatever it is
        found["problem"] = _line(error)
    return found


def _broker() -> dict[str, Any]:
    found: dict[str, Any] = {"url": None, "because": origin(*BROKER_NAMES), "answers": False, "problem": None}
    try:
        url = get_settings().require_broker_url()
        from kombu import Connection

        connection = Connection(url, transport_options={"socket_connect_timeout": 2, "socket_timeout": 2})
        found["url"] = connection.as_uri()
        found["because"] = _because(found["because"])
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        channel = connection.default_channel
        from worker.config import QUEUES

        found["depths"] = {queue: int(channel._size(queue)) for queue in QUEUES} if hasattr(channel, "_size") else None
        if hasattr(channel, "client"):
            # A replica, or a broker that is out of memory or disk, answers and takes nothing.
            channel.client.set("ops.status", "", px=1)
        found["answers"] = True
        connection.release()
    except Exception as error:  # noqa: BLE001
        found["problem"] = _line(error)
    return found


def _because(source: str | None) -> str | None:
    """Why this one, also where the environment hides an embedded stack."""
    data_dir = find_data_dir()
    if source is None or data_dir is None or source.startswith(str(data_dir)):
        return source
    return f"{source}; it hides the embedded stack in {data_dir}"


def _inside() -> dict[str, Any]:
    with get_db_session() as session:
        stats = StatsRepository(session)
        return {
            "processes": [_process(row) for row in stats.processes()],
            "queues": [row._asdict() for row in stats.queues()],
            "running": [_running(job) for job in stats.running()],
            "ended_badly": [_ended(deployment) for deployment in stats.ended_badly()],
            "ticks": [_tick(row) for row in stats.ticks()],
            "open_alerts": stats.open_alerts(),
            "firing": [_row(each, "id", "severity", "title", "fired_at", "acknowledged_at") for each in stats.firing()],
            "checks": stats.checks(),
            "checks_down": [_row(each, "name", "state", "since_at", "last_message") for each in stats.checks_down()],
            "schedules_paused": [
                _row(each, "name", "paused_at", "paused_because") for each in stats.schedules_paused()
            ],
            "paused": _paused(stats.ledger_state()),
            "audit": _audit(session),
        }


def _paused(state: LedgerState) -> dict[str, Any] | None:
    if state.paused_because is None:
        return None
    return {"at": state.paused_at, "because": state.paused_because, "reason": state.reason}


def _audit(session: Session) -> dict[str, Any]:
    """How far the trail is sealed."""
    keys = seal_keys()
    state = sealing.state(session, keys)
    return {
        "sealing": keys.signer is not None, "newest_seal": state.newest.number if state.newest else None,
        "unsealed": state.unsealed, "oldest_unsealed_at": state.oldest_unsealed_at,
    }  # fmt: skip


def _process(row: Process) -> dict[str, Any]:
    fields = ("kind", "name", "host", "pid", "info", "started_at", "seen_at", "draining_at", "alive")
    return {field: getattr(row, field) for field in fields}


def _running(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "task": job.task, "worker": job.worker, "started_at": job.started_at, **job.kwargs}


def _ended(deployment: Deployment) -> dict[str, Any]:
    return {
        "id": deployment.id, "status": deployment.status, "finished_at": deployment.finished_at,
        "error_message": deployment.error_message,
    }  # fmt: skip


def _row(row: Any, *fields: str) -> dict[str, Any]:
    return {field: getattr(row, field) for field in fields}


def _tick(tick: Tick) -> dict[str, Any]:
    return {"name": tick.name, "last_success_at": tick.last_success_at}


def _print(status: dict[str, Any]) -> None:
    for name in ("database", "broker"):
        part = status[name]
        # A server that answers, with tables that are not this release's, is nothing to be started.
        wrong = "cannot be used" if part.get("server") else "does not answer"
        words = "answers" if part["answers"] else f"{wrong}: {part['problem']}"
        out.line(f"{name:9} {part['url'] or '-'}  {words}", style=None if part["answers"] else "bold red")
        if part["because"]:
            out.line(f"{'':9} from {part['because']}", style="dim")
    if "processes" not in status:
        if is_embedded() and not status["database"].get("server"):
            out.line(f"next: {START_IT}")
        return
    rows = [
        (each["kind"], each["name"], each["pid"], _life(each), ago(each["seen_at"]),
         _work(each["info"]))
        for each in status["processes"]
    ]  # fmt: skip
    if rows:
        out.table("processes", ("kind", "name", "pid", "", "seen", ""), rows)
    else:
        out.line("nobody works here: no worker, beat or relay was seen in the last hour; try: ops up", style="yellow")
    _print_work(status)


def _print_work(status: dict[str, Any]) -> None:
    if paused := status["paused"]:
        why = paused["reason"] or "somebody asked for it"
        out.line(f"PAUSED {ago(paused['at'])}: {why}; nothing starts until: ops resume", style="bold yellow")
    queues = [(q["queue"], q["queued"], q["due"], q["running"], q["oldest_due"]) for q in status["queues"]]
    if queues:
        out.table("queues", ("queue", "queued", "due", "running", "oldest due"), queues)
    else:
        out.line("nothing waits and nothing runs")
    if status["running"]:
        rows = [(j.get("deployment_id"), j["task"], j["worker"], ago(j["started_at"])) for j in status["running"]]
        out.table("running", ("deployment", "task", "worker", "started"), rows)
    if status["ended_badly"]:
        bad = [(d["id"], d["status"], ago(d["finished_at"]), cell(d["error_message"])) for d in status["ended_badly"]]
        out.table("failed in the last day", ("deployment", "status", "ended", "why"), bad)
    print_trouble(status)
    ticks = ", ".join(f"{tick['name']} {ago(tick['last_success_at'])}" for tick in status["ticks"])
    out.line(f"ticks: {ticks or 'none yet'}; open alerts: {status['open_alerts']}")
    _print_audit(status["audit"])


def _print_audit(audit: dict[str, Any]) -> None:
    if not audit["sealing"]:
        out.line("audit: not sealed here, a change to the trail would not be found; try: ops audit new-key", "yellow")
        return
    waiting = f", the oldest {ago(audit['oldest_unsealed_at'])}" if audit["unsealed"] else ""
    out.line(f"audit: sealed up to seal {audit['newest_seal'] or '-'}; {audit['unsealed']} entries wait{waiting}")


def _life(process: dict[str, Any]) -> str:
    if not process["alive"]:
        return "not seen"
    if process["draining_at"] is None:
        return "alive"
    return "drains" if process["info"].get("draining") else "is to drain"


def _work(info: dict[str, Any]) -> str:
    parts = []
    if info.get("queues"):
        parts.append("serves " + ", ".join(info["queues"]))
    if info.get("relayed"):
        parts.append(f"rang {info['relayed']}")
    if info.get("rescued"):
        parts.append(f"rescued {info['rescued']}")
    return "; ".join(parts)


def _line(error: Exception) -> str:
    known = error if isinstance(error, OpsError) else explain(error)
    text = str(known or error).strip() or type(error).__name__
    return text.splitlines()[0].removeprefix("the database does not answer: ")[:300]
