"""The platform's own app with the tasks of the bench."""

from worker.app import app

app.conf.include = [*app.conf.include, "tests.bench.durable"]
