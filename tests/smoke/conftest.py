"""pytest-celery's containers around our own worker image, on PostgreSQL with our tables and Valkey."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
import pytest_docker_tools.wrappers.container

# The plugin's own entry point is switched off, since it turns `celery_worker` into containers for every test.
from pytest_celery import *  # noqa: F403
from pytest_celery import CeleryBackendCluster, CeleryBrokerCluster, CeleryWorkerContainer
from pytest_docker_tools import container, fxtr

from tests.containers import engine

ROOT = Path(__file__).parents[2]
IMAGE = f"ai-manage-ops:smoke{os.getpid()}"
PASSWORD = "only-for-this-test"

# It takes a machine with a /.dockerenv file for a container and hands out inner ports; the tests run on the engine's
# own host.
pytest_docker_tools.wrappers.container.tests_inside_container = lambda: False


@pytest.fixture(scope="session", autouse=True)
def docker_engine() -> Iterator[None]:
    with engine():
        yield


@pytest.fixture(scope="session")
def docker_client(docker_engine: None) -> Iterator[Any]:
    client = docker.from_env()
    try:
        yield client
    finally:
        # Removing a container leaves its anonymous volumes.
        for name in _volumes:
            with contextlib.suppress(docker.errors.APIError):
                client.volumes.get(name).remove()
        client.close()


_volumes: list[str] = []


def remember_volumes(made: Any) -> None:
    _volumes.extend(mount["Name"] for mount in made.attrs["Mounts"] if mount["Type"] == "volume")


@pytest.fixture(scope="session")
def own_image(docker_client: Any) -> Iterator[str]:
    """The image of the Dockerfile, as users build it."""
    docker_client.images.build(path=str(ROOT), tag=IMAGE, target="ops", rm=True)
    try:
        yield IMAGE
    finally:
        docker_client.images.remove(IMAGE)


@pytest.fixture
def default_redis_broker_image() -> str:
    return "valkey/valkey:9"


@pytest.fixture
def default_redis_backend_image() -> str:
    return "valkey/valkey:9"


# Redis alone: without these each test runs once more with RabbitMQ.
@pytest.fixture
def celery_broker_cluster(celery_redis_broker: Any) -> Iterator[CeleryBrokerCluster]:
    cluster = CeleryBrokerCluster(celery_redis_broker)
    remember_volumes(celery_redis_broker.container)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster(celery_redis_backend: Any) -> Iterator[CeleryBackendCluster]:
    cluster = CeleryBackendCluster(celery_redis_backend)
    remember_volumes(celery_redis_backend.container)
    yield cluster
    cluster.teardown()


postgres = container(
    image="postgres:18",
    environment={"POSTGRES_PASSWORD": PASSWORD},
    network="{default_pytest_celery_network.name}",
    ports={"5432/tcp": None},
    timeout=60,
)


@pytest.fixture
def database_urls(postgres: Any) -> dict[str, str]:
    """Migrated, as seen from here and from the network of the containers."""
    here = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{postgres.ports['5432/tcp'][0]}/postgres"
    remember_volumes(postgres)
    until_it_answers(here)
    there = f"postgresql://postgres:{PASSWORD}@{postgres.attrs['Config']['Hostname']}/postgres"
    return {"here": here, "there": there}


def until_it_answers(url: str) -> None:
    from tests.e2e.process import until

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    until(answers, "PostgreSQL answers")


class Worker(CeleryWorkerContainer):
    """Our worker. Its log says `ready` as any other's."""

    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        start = "ops db init >/dev/null && exec celery -A worker.app worker --loglevel=INFO -Q deployments,control"
        return ["sh", "-c", f"{start} -n {cls.worker_name()}@%h"]


@pytest.fixture
def default_worker_container_cls() -> type[Worker]:
    return Worker


default_worker_container = container(
    image="{own_image}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=Worker,
    timeout=90,
    command=fxtr("default_worker_command"),
)
