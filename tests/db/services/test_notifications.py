"""Who is told of alerts: gathered, repeated, limited, each once; and what becomes of what is not taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.alerting import Condition
from db.errors import AlreadyExists, Conflict, DecryptionError, InvalidInput, PermissionDenied
from db.models import Job, Notification, NotificationChannel
from db.services import alerts, channels, evaluation, notifications, rules, silences
from db.services.evaluation import Observation
from db.states import Severity
from tests.conftest import SCHEMA
from tests.db.services.conftest import one_line

SECRET = "correct-horse-battery"


@pytest.fixture
def channel(session: Session) -> Callable[..., NotificationChannel]:
    def make(name: str = "pager", rate_limit: int = 10, **route) -> NotificationChannel:
        made = channels.add(
            session, name=name, kind="webhook", config={"url": "http://127.0.0.1:1/x", "secret": SECRET},
            rate_limit=rate_limit,
        )  # fmt: skip
        channels.add_route(session, channel=made, **({"wait_seconds": 0} | route))
        session.commit()
        return made

    return make


@pytest.fixture
def fire(session: Session) -> Callable[..., None]:
    """From now on exactly these are wrong."""

    def run(*names: str, severity: Severity = Severity.HIGH) -> None:
        conditions = [Condition(f"t:{n}", "t", severity, f"{n} is down", labels={"check": n}) for n in names]
        evaluation.evaluate(session, [lambda *_: Observation(frozenset({"t"}), conditions)])
        session.commit()

    return run


@pytest.fixture
def dispatch(session: Session) -> Callable[[], dict | None]:
    def run() -> dict | None:
        done = notifications.dispatch(session)
        session.commit()
        return done

    return run


def jobs(session: Session) -> list[UUID]:
    query = select(Job.id).where(Job.task == notifications.SEND_TASK, Job.state == "queued").order_by(Job.seq)
    return list(session.scalars(query))


def send(session: Session, job: UUID) -> list[str]:
    """As the task does where the receiver takes it; answers what the message told."""
    delivery = notifications.open_(session, job_id=job)
    if delivery is None:
        return []
    notifications.sent(session, delivery=delivery)
    session.execute(
        text(f"UPDATE {SCHEMA}.jobs SET state='succeeded', outcome='ok', finished_at=now() WHERE id=:id"), {"id": job}
    )
    session.commit()
    return [f"{item.transition.value} {item.alert['labels']['check']}" for item in delivery.items]


def send_all(session: Session) -> list[list[str]]:
    return [send(session, job) for job in jobs(session)]


def later(session: Session, seconds: float) -> None:
    """Time passes: all that was told is so much older."""
    columns = ("created_at", "due_at", "queued_at", "finished_at")
    moved = ", ".join(f"{name} = {name} - interval '{seconds} s'" for name in columns)
    session.execute(text(f"UPDATE {SCHEMA}.notifications SET {moved}"))
    session.commit()


def told(session: Session) -> list[str]:
    session.expire_all()
    rows = session.scalars(select(Notification).order_by(Notification.id))
    return [f"{row.transition.value} {row.state.value}" for row in rows]


def test_a_beginning_and_its_end_are_told_once_each_however_often_it_is_dispatched(session, channel, fire, dispatch):
    channel()
    fire("web")
    assert dispatch() == {"notices": 1, "messages": 1}
    assert dispatch() is None
    assert send_all(session) == [["raised web"]]
    fire()
    dispatch()
    dispatch()
    assert send_all(session) == [["resolved web"]]
    assert dispatch() is None
    assert told(session) == ["raised sent", "resolved sent"]


def test_what_comes_within_the_wait_is_one_message_and_groups_are_messages_of_their_own(
    session, channel, fire, dispatch
):
    channel(wait_seconds=30)
    channel("mail", wait_seconds=30, group_by=["check"])
    fire("a")
    assert dispatch() == {"notices": 2}
    fire("a", "b")
    dispatch()
    fire("a")  # b is over before anybody was told
    dispatch()
    assert jobs(session) == []
    later(session, 30)
    assert dispatch() == {"messages": 3}
    assert sorted(send_all(session)) == [
        ["raised a"], ["raised a", "raised b", "resolved b"], ["raised b", "resolved b"],
    ]  # fmt: skip


def test_it_is_repeated_until_somebody_looks_after_it(session, channel, fire, dispatch):
    channel()
    fire("a")
    dispatch()
    send_all(session)
    later(session, 4 * 3600 - 60)
    assert dispatch() is None
    later(session, 60)
    dispatch()
    assert send_all(session) == [["repeated a"]]
    later(session, 4 * 3600)
    alerts.acknowledge(session, alert_id=1)
    assert dispatch() is None
    fire()
    dispatch()
    assert send_all(session) == [["resolved a"]]


def test_routes_choose_by_severity_and_labels(session, channel, fire, dispatch):
    channel(severity="critical")
    channel("web", matchers={"check": "web*"})
    channel("all", matchers={"severity": "high"})
    fire("web-1", "db")
    dispatch()
    assert sorted(map(tuple, send_all(session))) == [("raised db", "raised web-1"), ("raised web-1",)]
    fire("web-1", "db", severity=Severity.CRITICAL)  # worse by now, and others are to know
    dispatch()
    assert list(map(sorted, send_all(session))) == [["raised db", "raised web-1"]]


def test_a_silence_keeps_it_quiet_until_it_ends(session, channel, fire, dispatch):
    channel()
    made = silences.silence(session, matchers={"check": "w?b"}, ends_at=datetime.now(UTC) + timedelta(hours=1))
    fire("web", "db")
    dispatch()
    assert send_all(session) == [["raised db"]]
    silences.end_silence(session, silence_id=made.id)
    session.commit()
    dispatch()
    assert send_all(session) == [["raised web"]]
    with pytest.raises(Conflict) as error:
        silences.end_silence(session, silence_id=made.id)
    one_line(error)


def test_more_than_the_limit_waits_and_gathers_and_none_is_lost(session, channel, fire, dispatch):
    channel(rate_limit=2, group_by=["check"])
    fire(*"abcde")
    assert dispatch() == {"notices": 5, "messages": 2}
    assert dispatch() is None
    fire(*"abcd")  # e is over, and goes into its group's message
    dispatch()
    later(session, 61)
    dispatch()
    later(session, 61)
    dispatch()
    assert send_all(session) == [["raised a"], ["raised b"], ["raised c"], ["raised d"], ["raised e", "resolved e"]]


def test_a_message_that_was_not_taken_keeps_its_id_and_is_tried_again(session, channel, fire, dispatch):
    channel()
    fire("a")
    dispatch()
    (job,) = jobs(session)
    first = notifications.open_(session, job_id=job)
    notifications.postponed(session, delivery=first, error="connection refused")
    session.commit()
    again = notifications.open_(session, job_id=job)
    assert (first.id, first.items) == (again.id, again.items)
    assert SECRET not in repr(again)
    assert send(session, job) == ["raised a"]
    assert notifications.open_(session, job_id=job) is None  # a second run finds nothing left


def test_a_refusal_for_good_disables_the_channel_and_an_alert_tells_of_it_by_the_others(
    session, channel, fire, dispatch
):
    broken = channel()
    channel("mail")
    fire("a")
    dispatch()
    first, _ = jobs(session)
    delivery = notifications.open_(session, job_id=first)
    notifications.refused(session, delivery=delivery, error="the receiver answered 410")
    session.commit()
    session.refresh(broken)
    assert (broken.is_broken, broken.disabled_because) == (True, "the receiver answered 410")
    assert rules_fire(session)["raised"] == 1
    dispatch()
    assert len(jobs(session)) == 3
    delivery = notifications.open_(session, job_id=jobs(session)[-1])
    assert [item.alert["title"] for item in delivery.items] == ["a channel was disabled by an error: pager"]
    assert channels.enable(session, channel=broken) == 1
    session.commit()
    assert rules_fire(session)["resolved"] == 1
    dispatch()
    assert "raised waiting" not in told(session)  # what had failed is told after all


def rules_fire(session: Session) -> dict | None:
    done = evaluation.evaluate(session, [rules.observe])
    session.commit()
    return done


def test_what_was_queued_for_a_channel_that_is_disabled_fails_and_is_told_when_it_is_enabled(
    session, channel, fire, dispatch
):
    made = channel()
    fire("a")
    dispatch()
    channels.disable(session, channel=made, because="by hand")
    session.commit()
    assert send_all(session) == [[]]
    assert told(session) == ["raised failed"]
    fire("a", "b")
    assert dispatch() is None
    session.refresh(made)
    assert channels.enable(session, channel=made) == 1
    session.commit()
    dispatch()
    assert send_all(session)[-1] == ["raised a", "raised b"]


def test_what_no_job_will_send_any_more_is_said_to_have_failed(session, channel, fire, dispatch):
    channel()
    fire("a")
    dispatch()
    session.execute(text(f"UPDATE {SCHEMA}.jobs SET state='cancelled', outcome='cancelled', finished_at=now()"))
    session.commit()
    assert dispatch() == {"failed": 1}
    assert told(session) == ["raised failed"]


def test_the_configuration_is_stored_encrypted_and_in_no_trail(session, channel, sql):
    made = channel()
    ((stored,),) = sql("SELECT encrypted_config FROM notification_channels")
    assert stored.startswith("v1:")
    assert channels.open_config(made)["secret"] == SECRET
    rows = sql("SELECT changes::text FROM audit_logs WHERE resource_type = 'channel'")
    assert len(rows) == 1
    assert "127.0.0.1" not in rows[0][0]
    sql("UPDATE notification_channels SET encrypted_config = 'v1:gone:x'")
    session.expire_all()
    with pytest.raises(DecryptionError):
        channels.open_config(made)


def test_without_a_secret_of_its_own_a_webhook_has_one_by_its_name(session):
    names = ("a", "b")
    made = [channels.add(session, name=n, kind="webhook", config={"url": "http://x.example/"}) for n in names]
    keys = {channels.show_key(session, channel=each) for each in made}
    assert len(keys) == 2
    assert keys == {channels.open_config(each)["secret"] for each in made}
    session.commit()
    query = text(
        f"SELECT count(*), bool_or(details::text LIKE '%' || :key || '%') FROM {SCHEMA}.audit_logs"
        " WHERE action = 'channel.key_shown'"
    )
    assert session.execute(query, {"key": keys.pop()}).one() == (2, False)


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("webhook", {}, "url"),
        ("webhook", {"url": "ftp://x"}, "url: an http or https address is needed"),
        ("webhook", {"url": "http://x/", "secret": "short"}, "secret"),
        ("webhook", {"url": "http://x/", "headers": {"a\nb": "c"}}, "headers"),
        ("webhook", {"url": "http://x/", "headers": {"a": "c\r\nd"}}, "headers"),
        ("webhook", {"url": "http://x/", "template": "$nothing"}, "template: $nothing stands for nothing"),
        ("webhook", {"url": "http://x/", "template": "$ 5"}, "template: a $ that names nothing"),
        ("apprise", {"url": "no address"}, "url: an Apprise address is needed"),
        ("smtp", {"host": "x", "sender": "a@b.c", "to": []}, "to"),
        ("smtp", {"host": "x", "sender": "nobody", "to": ["a@b.c"]}, "sender: an e-mail address is needed"),
        ("smtp", {"host": "x", "sender": "a@b.c", "to": ["a@b.c"], "username": "u"}, "a username and a password"),
        ("smtp", {"host": "mail.example.com", "tls": "none", "sender": "a@b.c", "to": ["a@b.c"], "username": "u",
                  "password": SECRET}, "by starttls or tls only"),
        ("pigeon", {}, "kind"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_is_refused_in_one_line_without_its_values(session, kind, config, says):
    with pytest.raises(InvalidInput) as error:
        channels.add(session, name="x", kind=kind, config=config)
    assert says in one_line(error)
    assert SECRET not in str(error.value)
    assert session.scalars(select(NotificationChannel)).all() == []


def test_names_are_taken_once_and_only_admins_decide_who_is_told(session, channel, person):
    made = channel()
    with pytest.raises(AlreadyExists) as error:
        channels.add(session, name="PAGER", kind="apprise", config={"url": "json://x"})
    assert one_line(error) == "a channel with this name exists already"
    operator = person("olga")
    for act in (
        lambda: channels.add(session, name="y", kind="apprise", config={"url": "json://x"}, actor=operator),
        lambda: channels.add_route(session, channel=made, actor=operator),
        lambda: channels.disable(session, channel=made, because="x", actor=operator),
        lambda: channels.show_key(session, channel=made, actor=operator),
        lambda: channels.remove(session, channel=made, actor=operator),
    ):
        with pytest.raises(PermissionDenied) as denied:
            act()
        one_line(denied)


def test_a_message_is_json_of_the_alert_and_nothing_of_the_channel(session, channel, fire, dispatch):
    channel()
    fire("a")
    dispatch()
    (job,) = jobs(session)
    delivery = notifications.open_(session, job_id=job)
    said = json.dumps([item.alert for item in delivery.items])
    assert SECRET not in said
    assert json.loads(said)[0]["labels"] == {"check": "a"}


def test_after_the_clock_was_set_back_people_are_told_at_once(session, channel, fire, dispatch, sql):
    channel(rate_limit=1, wait_seconds=600)
    fire("a")
    dispatch()
    assert not jobs(session)
    sql("UPDATE notifications SET created_at = created_at + interval '2 h', due_at = due_at + interval '2 h'")
    dispatch()
    (first,) = jobs(session)
    assert send(session, first)
    # What was sent at a time to come is no reason to wait either.
    sql("UPDATE notifications SET queued_at = now() + interval '2 h', created_at = now() - interval '1 h'")
    fire()
    dispatch()
    sql("UPDATE notifications SET due_at = now() WHERE state = 'waiting'")
    dispatch()
    assert len(jobs(session)) == 1
