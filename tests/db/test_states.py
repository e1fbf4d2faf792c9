"""The states in Python, in SQL and in the schema's CHECKs say the same."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.errors import InvalidInput
from db.models.base import WORDS, Word
from db.states import DEPLOYMENT_TRANSITIONS, DeploymentStatus, JobState, Outcome, Role, deployment_status

D = DeploymentStatus
statuses = st.sampled_from(D)
roles = st.sampled_from(Role)


@given(statuses)
def test_every_status_has_its_row_and_none_follows_itself(status):
    assert status not in DEPLOYMENT_TRANSITIONS[status]


@given(statuses)
def test_every_status_is_reached_from_pending(status):
    reached = {D.PENDING}
    while (more := reached.union(*(DEPLOYMENT_TRANSITIONS[each] for each in reached))) != reached:
        reached = more
    assert status in reached


@given(statuses)
def test_an_ended_deployment_moves_only_by_a_retry_or_a_rollback(status):
    if status.is_final:
        assert DEPLOYMENT_TRANSITIONS[status] <= {D.PENDING, D.ROLLED_BACK}
    else:
        assert {D.FAILED, D.ERROR, D.CANCELLED} <= DEPLOYMENT_TRANSITIONS[status]


def test_what_succeeded_is_never_tried_again_and_what_was_rolled_back_is_the_end():
    assert D.PENDING not in DEPLOYMENT_TRANSITIONS[D.SUCCESS]
    assert not DEPLOYMENT_TRANSITIONS[D.ROLLED_BACK]


@given(st.sampled_from(JobState), st.sampled_from([None, *Outcome]))
def test_a_deployment_has_ended_when_its_job_has(state, outcome):
    assert deployment_status(state, outcome).is_final is state.is_final


@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Outcome.FAILED, D.FAILED), (Outcome.TIMEOUT, D.FAILED), (Outcome.LOST, D.ERROR), (Outcome.INTERRUPTED, D.ERROR)],
)
def test_what_nobody_can_tell_is_an_error_and_what_said_no_has_failed(outcome, status):
    assert deployment_status(JobState.FAILED, outcome) is status


def test_the_database_says_the_same_of_every_combination(sql):
    for state, outcome in product(JobState, [None, *Outcome]):
        assert sql("SELECT ops_deployment_status(%s, %s)", state, outcome) == [(deployment_status(state, outcome),)]


def test_every_move_of_a_job_is_a_transition_of_its_deployment():
    moves = {
        JobState.QUEUED: [(JobState.RUNNING, None), (JobState.CANCELLED, Outcome.CANCELLED)],
        JobState.RUNNING: [(JobState.SUCCEEDED, Outcome.OK), (JobState.QUEUED, None), (JobState.CANCELLED, None)]
        + [(JobState.FAILED, each) for each in (Outcome.FAILED, Outcome.TIMEOUT, Outcome.LOST, Outcome.INTERRUPTED)],
    }
    for state, follow in moves.items():
        for after, outcome in follow:
            assert deployment_status(after, outcome) in DEPLOYMENT_TRANSITIONS[deployment_status(state, None)]


@given(roles, roles, roles)
def test_roles_are_an_order(one, two, three):
    assert one.may(one)
    assert one.may(two) or two.may(one)
    assert not (one.may(two) and two.may(three)) or one.may(three)
    assert Role.ADMIN.may(one)
    assert one.may(Role.VIEWER)


def test_the_schema_knows_every_word_and_no_other(sql):
    """Each CHECK that lists words lists those of one enum."""
    checks = [text for (text,) in sql("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'")]
    lists = [{part.split("'")[1] for part in text.split("ARRAY[")[1].split("]")[0].split(",")} for text in checks
             if text.count("ARRAY[") == 1 and "AND" not in text and "OR" not in text]  # fmt: skip
    for words in WORDS:
        assert {word.value for word in words} in lists, words


@given(st.text())
def test_a_word_that_is_none_is_refused_before_the_database(text):
    for words in WORDS:
        if text not in list(words):
            with pytest.raises(InvalidInput) as error:
                Word(words).process_bind_param(text, None)
            assert "\n" not in str(error.value)


def test_a_status_and_its_end_agree_in_the_schema(sql):
    sql("INSERT INTO users (username, email) VALUES ('a', 'a@example.org')")
    sql("INSERT INTO applications (name) VALUES ('a')")
    sql("INSERT INTO infrastructure (name, owner_id) SELECT 'a', id FROM users")
    insert = """INSERT INTO deployments
        (user_id, application_id, infrastructure_id, version, status, finished_at, error_message)
        SELECT owner_id, (SELECT id FROM applications), id, 'v1', %s, %s, %s FROM infrastructure"""
    for status in D:
        end, why = ("now", "why") if status.is_final else (None, None)
        sql(insert, status, end, why)
        with pytest.raises(psycopg.errors.CheckViolation, match="ck_deployments_finished_at"):
            sql(insert, status, None if end else "now", "why")
        if status in (D.FAILED, D.ERROR):
            with pytest.raises(psycopg.errors.CheckViolation, match="ck_deployments_error_message"):
                sql(insert, status, end, None)
