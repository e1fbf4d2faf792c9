"""What goes to hosts is content with a digest, from wherever it is; the plan says both."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.models import Deployment, Infrastructure
from db.services import applications, deployments, hosts, infrastructure, plans, secrets
from tests.db.services.conftest import one_line

DIGEST = "sha256:" + "a" * 64
COMMIT = "git:" + "b" * 40


@pytest.fixture
def estate(session: Session, anna) -> Infrastructure:
    secrets.store(session, user_id=anna.id, service_name="ssh", key_name="key", value="closed")
    settings = {"user": "deploy", "key": "ssh/key"}
    made = infrastructure.register(session, owner_id=anna.id, name="estate", driver="ssh", settings=settings)
    hosts.add(session, infrastructure=made, name="web1", address="127.0.0.1", port=22, host_key=None)
    session.commit()
    return made


def deploy(session: Session, anna, shop, estate, artifact: str, **fields: Any) -> Deployment:
    applications.edit(session, application=shop, configuration={"artifact": artifact})
    made = deployments.create(
        session, user_id=anna.id, application_id=shop.id, infrastructure_id=estate.id,
        **{"version": "v1"} | fields,
    )  # fmt: skip
    session.commit()
    return made


def artifact_of(session: Session, made: Deployment) -> dict[str, Any]:
    assert made.job_id is not None
    plan = plans.freeze(session, deployment_id=made.id, job_id=made.job_id, attempt=1, fence=1)
    found: dict[str, Any] = plan.body["artifact"]
    return found


@pytest.mark.parametrize(
    ("artifact", "fields", "expected"),
    [
        ("out/{version}", {}, {"kind": "path", "location": "out/v1", "digest": None}),  # the worker looks it up
        ("https://h/{version}.tgz", {"digest": DIGEST},
         {"kind": "url", "location": "https://h/v1.tgz", "digest": DIGEST}),
        ("git:/srv/web", {"version": "b" * 40}, {"kind": "git", "location": "/srv/web", "digest": COMMIT}),
    ],
)  # fmt: skip
def test_the_plan_says_where_the_content_is_and_what_it_must_be(
    session, anna, shop, estate, artifact, fields, expected
):
    made = deploy(session, anna, shop, estate, artifact, **fields)
    assert artifact_of(session, made) == expected


def test_what_is_pinned_is_what_a_later_attempt_brings(session, anna, shop, estate):
    made = deploy(session, anna, shop, estate, "out/{version}")
    deployments.pin(session, deployment_id=made.id, job_id=made.job_id, digest=DIGEST)
    assert artifact_of(session, made)["digest"] == DIGEST


def test_an_address_without_a_digest_and_an_image_are_refused_with_nothing_written(session, anna, shop, estate):
    with pytest.raises(InvalidInput, match="needs its digest") as refused:
        deploy(session, anna, shop, estate, "https://h/{version}.tgz")
    one_line(refused)
    session.rollback()
    with pytest.raises(InvalidInput, match="no image") as refused:
        deploy(session, anna, shop, estate, "image:web")
    one_line(refused)
