"""A platform of real processes: starts them, kills them, looks at what they did, and always stops them."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import redis
from psycopg.rows import dict_row

from db.connection import get_db_session
from db.ledger import Bell
from db.repositories.jobs import JobRepository
from db.service import DatabaseService
from tests.conftest import SCHEMA, Database
from tests.e2e.effects import Effects
from tests.e2e.process import PATIENCE, Process, children, command_line, descendants, kill, until
from worker import publish
from worker.devstack import Stack

ROOT = Path(__file__).parent.parent.parent
EFFECT = Path(__file__).parent / "effect.py"
FINAL = ("success", "failed", "error", "cancelled", "rolled_back")


@dataclass(frozen=True)
class Deployed:
    """A deployment that was asked for."""

    id: int
    job: str
    key: str


class Platform:
    """The processes of one test, on one database and one broker."""

    def __init__(self, stack: Stack, database: Database, folder: Path) -> None:
        self.stack = stack
        self.database = database
        self.folder = folder
        self.effects = Effects(folder / "effects")
        self.processes: list[Process] = []
        self._applications: dict[str, int] = {}
        self._infrastructure: dict[str, int] = {}
        self._user: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Exactly what a process of the platform needs."""
        names = ("DATABASE_URL", "OPS_BROKER_URL", "ENCRYPTION_KEY", "SECRET_KEY", "PATH", "HOME", "OPS_POSTGRES_BIN")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return kept | {
            "OPS_DATABASE_SCHEMA": SCHEMA,
            "OPS_DATA_DIR": str(self.folder / "nothing"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
        }

    # Processes ------------------------------------------------------------------------------------------------------

    def start(self, name: str, *argv: str, **environment: str) -> Process:
        """Start a Python program of ours: ``start("x", "-m", "celery", ...)``."""
        process = Process(name, [sys.executable, *argv], self.environment | environment, self.folder)
        self.processes.append(process)
        return process

    def worker(
        self,
        name: str = "w1",
        *options: str,
        processes: int = 2,
        queues: str = "deployments,control",
        app: str = "worker.app",
        wait: bool = True,
        **environment: str,
    ) -> Process:
        """Start a worker and wait until it says that it lives."""
        worker = self.start(
            name, "-m", "celery", "-A", app, "worker", "-n", f"{name}@%h", "-c", str(processes), "-Q", queues,
            "--loglevel=INFO", *options, **environment,
        )  # fmt: skip
        if wait:
            self.wait_ready(worker)
        return worker

    def workers(self, *names: str, **options: Any) -> list[Process]:
        """Several of the same kind, started at once."""
        made = [self.worker(name, wait=False, **options) for name in names]
        for worker in made:
            self.wait_ready(worker)
        return made

    @staticmethod
    def stop(*processes: Process) -> list[int]:
        """TERM to all of them; their exit codes."""
        for process in processes:
            process.signal(signal.SIGTERM)
        return [process.wait() for process in processes]

    def beat(self, name: str = "beat", *options: str, app: str = "worker.app", **environment: str) -> Process:
        beat = self.start(name, "-m", "celery", "-A", app, "beat", "--loglevel=INFO", *options, **environment)
        self.wait_ready(beat)
        return beat

    def wait_ready(self, process: Process) -> None:
        def ready() -> bool:
            assert process.is_alive, f"{process.name} ended with {process.wait()}"
            return bool(
                self.rows(
                    "SELECT 1 FROM processes WHERE pid = %s AND (kind <> 'worker' OR (info ->> 'ready')::boolean)",
                    process.pid,
                )
            )

        until(ready, f"{process.name} is ready")

    def end(self) -> None:
        """End everything that this platform started."""
        for process in self.processes:
            process.end()
        for run in self.effects.read():
            if EFFECT.name in command_line(run.pid):
                kill(run.pid)

    def logs(self, last: int = 4000) -> str:
        """What the processes printed, for a person who looks at a failed test."""
        return "\n".join(f"----- {each.name} (pid {each.pid})\n{each.text[-last:]}" for each in self.processes)

    # The database and the broker ------------------------------------------------------------------------------------

    def rows(self, statement: str, *arguments: object, role: str = "ops_owner") -> list[dict[str, Any]]:
        """One statement as the owner of the tables."""
        url = self.stack.database_url(self.database.name, role=role)
        with psycopg.connect(
            url, autocommit=True, row_factory=dict_row, options=f"-c search_path={SCHEMA}", connect_timeout=5
        ) as database:
            cursor = database.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def lease(self, seconds: float) -> None:
        """From now on every new job has a lease of so many seconds: what a promise is relative to, made short."""
        self.rows(
            f"""CREATE OR REPLACE FUNCTION short_lease() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.lease_seconds := {float(seconds)}; RETURN NEW; END $$"""
        )
        self.rows(
            """CREATE OR REPLACE TRIGGER short_lease BEFORE INSERT ON jobs
            FOR EACH ROW EXECUTE FUNCTION short_lease()"""
        )

    @property
    def broker(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.stack.valkey.socket_path))

    def depth(self, queue: str) -> int:
        """How many messages lie in a queue, in all of its priorities."""
        return sum(self.broker.llen(key) for key in self.broker.keys(f"{queue}*") if self.broker.type(key) == b"list")

    def job(self, job: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM jobs WHERE id = %s", job)[0]

    def deployment(self, deployment: int) -> dict[str, Any]:
        return self.rows("SELECT * FROM deployments WHERE id = %s", deployment)[0]

    def log_of(self, deployment: int) -> str:
        rows = self.rows("SELECT content FROM deployment_logs WHERE deployment_id = %s ORDER BY id", deployment)
        return "".join(row["content"] for row in rows)

    def story(self, job: str) -> list[str]:
        """What the audit trail tells of a job, in order: ``enqueued started succeeded``."""
        rows = self.rows(
            "SELECT action FROM audit_logs WHERE resource_type = 'job' AND resource_id = %s ORDER BY id", job
        )
        return [row["action"].removeprefix("job.") for row in rows]

    def tick(self, name: str) -> Any:
        """When a periodic job has last run; None: never."""
        rows = self.rows("SELECT last_success_at FROM ticks WHERE name = %s", name)
        return rows[0]["last_success_at"] if rows else None

    @contextmanager
    def locked_row(self, job: str) -> Iterator[None]:
        """Hold a job's row, so that whoever wants to change it waits."""
        url = self.stack.database_url(self.database.name, role="ops_owner")
        with psycopg.connect(url, options=f"-c search_path={SCHEMA}") as holder:
            holder.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [job])
            yield
            holder.rollback()

    @contextmanager
    def frozen_broker(self) -> Iterator[None]:
        """A broker that keeps its connections and answers nobody."""
        pid = self.stack.valkey.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def waits_in(self, function: str) -> int:
        """How many statements that call this function wait for a lock."""
        waiting = self.rows(
            """SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s
            AND datname = current_database()""",
            f"%{function}%",
            role="postgres",
        )
        return len(waiting)

    def inspect(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask all workers by the broker, as Flower does; the answer of each."""
        line = publish.line()
        assert line is not None
        alive = [process for process in self.processes if process.is_alive and process.name.startswith("w")]
        answers = line.app.control.broadcast(
            command, arguments=arguments, reply=True, timeout=PATIENCE / 6, limit=len(alive)
        )
        return {name: answer for each in answers for name, answer in each.items()}

    def call_as(self, module: str = "worker.app") -> Any:
        """Let this process ring for what it enqueues, as one does that has imported this app; answers the module."""
        # That of an earlier test rings another broker.
        for name in ("tests.e2e.shop", "worker.app"):
            sys.modules.pop(name, None)
        return importlib.import_module(module)

    def ring(self, job: str) -> None:
        """One more doorbell."""
        row = self.job(job)
        line = publish.line()
        assert line is not None
        assert line.ring([Bell(row["id"], row["task"], row["queue"], row["priority"])])

    def cancel(self, deployed: Deployed) -> None:
        with get_db_session() as session:
            DatabaseService(session).cancel_deployment(deployed.id)

    def cancel_job(self, job: str) -> None:
        with get_db_session() as session:
            JobRepository(session).cancel(UUID(job))

    def spawned(self, pid: int) -> int:
        """The process that an effect has started with ``--spawn``, or 0."""
        return next(iter(children(pid)), 0)

    # Deployments ----------------------------------------------------------------------------------------------------

    @property
    def user(self) -> int:
        """Who deploys, and whose secrets are used."""
        if self._user is None:
            with get_db_session() as session:
                made = DatabaseService(session).create_user_with_audit("ann", "ann@example.org", role="admin")
            self._user = made.id
        return self._user

    def deploy(
        self,
        *options: str,
        app: str = "app",
        infra: str = "infra",
        command: list[str] | None = None,
        **configuration: Any,
    ) -> Deployed:
        """Deploy ``effect.py`` with these options, or a command. Deployments with one name of an infrastructure, and
        the same options, queue up on one lock key."""
        user = self.user
        with get_db_session() as session:
            service = DatabaseService(session)
            name = f"{app}-{abs(hash((options, repr(configuration)))) % 10**8}" if app == "app" else app
            if name not in self._applications:
                command = command or [sys.executable, "-IS", str(EFFECT), str(self.effects.file), *options]
                self._applications[name] = service.register_application(name, command, configuration=configuration).id
            if infra not in self._infrastructure:
                self._infrastructure[infra] = service.register_infrastructure(infra, user).id
            made = service.create_deployment(user, self._applications[name], self._infrastructure[infra], "1")
            job = str(made.job_id)
            session.flush()
            deployment = made.id
        return Deployed(deployment, job, str(self.job(job)["lock_key"]))

    def wait_begun(self, deployed: Deployed | str, seconds: float = PATIENCE) -> int:
        """Wait for the first sign of life of an effect (of a deployment, or of a job); answers its process id."""
        job = deployed.job if isinstance(deployed, Deployed) else deployed
        until(lambda: self.effects.of(job), f"the effect of {deployed} began", seconds)
        return self.effects.of(job)[-1].pid

    @staticmethod
    def supervisors(worker: Process, effect: int) -> list[int]:
        """Those of a worker's supervisors under which this effect runs."""
        found = [each for child in worker.children for each in children(child)]
        return [each for each in found if effect in descendants(each)]

    def wait_ended(self, deployed: Deployed, seconds: float = PATIENCE) -> str:
        """Wait until the deployment has ended; answers its status, and the outcome where that says more."""
        row = until(
            lambda: next((r for r in [self.deployment(deployed.id)] if r["status"] in FINAL), None),
            f"deployment {deployed.id} has ended",
            seconds,
        )
        outcome = self.job(deployed.job)["outcome"]
        return f"error: {outcome}" if row["status"] == "error" else str(row["status"])

    def check_effects(self, *deployed: Deployed, begun: bool = True) -> None:
        """Outside evidence: none began twice, none overlapped on a key; ``begun``: each of them began."""
        keys = {str(r["id"]): str(r["lock_key"]) for r in self.rows("SELECT id, lock_key FROM jobs")}
        self.effects.check(keys, [each.job for each in deployed] if begun else None)
