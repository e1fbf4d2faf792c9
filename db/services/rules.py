"""The rules by which the platform watches itself: shipped, on, and editable. What each measures is in `db.measures`.

A rule fires for each thing (a queue, a host, a channel) whose value is beyond the threshold for ``for_seconds``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from sqlalchemy.orm import Session

from db.alerting import Condition
from db.channels import RuleSpec
from db.connection import savepoint
from db.errors import Conflict, NotFound
from db.fields import check
from db.models import AlertRule, User
from db.repositories import AlertRuleRepository
from db.services import measures, rights
from db.services.evaluation import Alerts, Observation
from db.states import Role, Severity

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rule:
    """``says`` is what it watches; ``unit`` what the threshold counts, beyond which (or below which: ``below``) it
    fires. ``severity`` None: the rule decides by itself. ``measure`` None: another source looks after it."""

    name: str
    says: str
    threshold: float | None
    unit: str
    severity: Severity | None
    for_seconds: float = 0
    below: bool = False
    measure: measures.Measure | None = None
    enabled: bool = True
    is_changed: bool = False

    def is_beyond(self, value: float) -> bool:
        assert self.threshold is not None
        return value < self.threshold if self.below else value > self.threshold


_LOW, _MEDIUM, _HIGH, _CRITICAL = Severity

#: In the order in which they are listed; each has a page in docs/runbooks.
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("deployment_failed", "the newest deployment somewhere failed", None, "", None),
        Rule("deployment_stuck", "a deployment neither starts nor ends", 300, "s", _HIGH,
             measure=measures.stuck_deployments),
        Rule("queue_age", "a due job waits although nothing holds it up", 300, "s", _HIGH, measure=measures.queue_age),
        Rule("no_worker", "nobody serves a queue in which there is work", 1, "workers", _CRITICAL, for_seconds=60,
             below=True, measure=measures.workers),
        Rule("beat_silent", "no beat was seen: nothing is due in time", 1, "beats", _CRITICAL, for_seconds=60,
             below=True, measure=measures.beats),
        Rule("auth_failures", "a burst of failed logins within five minutes", 20, "logins", _HIGH,
             measure=measures.failed_logins),
        Rule("audit_growth", "the audit trail grows faster than it should", 500_000, "entries/h", _MEDIUM,
             for_seconds=300, measure=measures.audit_growth),
        Rule("seal_lag", "entries of the audit trail wait for their seal", 600, "s", _HIGH, measure=measures.seal_lag),
        Rule("partitions_missing", "too few partitions are made ahead", 2, "partitions", _HIGH, below=True,
             measure=measures.partitions),
        Rule("pool_exhausted", "nearly all of the database's connections are in use", 80, "%", _HIGH, for_seconds=60,
             measure=measures.connections),
        Rule("slow_queries", "a statement of the platform takes long", 30, "s", _MEDIUM,
             measure=measures.slow_statements),
        Rule("decryption_failing", "stored values do not open", 0, "values", _CRITICAL,
             measure=measures.unreadable_values),
        Rule("decryption_slow", "opening a value takes long", 50, "ms", _MEDIUM, for_seconds=120,
             measure=measures.decryption_time),
        Rule("disk_full", "a worker's disk is nearly full", 90, "%", _HIGH, for_seconds=60, measure=measures.disks),
        Rule("channel_broken", "a channel was disabled by an error", 0, "channels", _HIGH,
             measure=measures.broken_channels),
        Rule("notifications_late", "a notification cannot be delivered", 900, "s", _HIGH,
             measure=measures.late_notifications),
    )
}  # fmt: skip


def all_(session: Session) -> dict[str, Rule]:
    """Every rule as it holds here."""
    changed = AlertRuleRepository(session).all_()
    return {name: _with(rule, changed.get(name)) for name, rule in RULES.items()}


def effective(session: Session, name: str) -> Rule:
    """One rule as it holds here. Raises NotFound."""
    _require(name)
    return _with(RULES[name], AlertRuleRepository(session).all_().get(name))


def change(session: Session, *, name: str, actor: User | None = None, **values: Any) -> Rule:
    """Change what is named: ``enabled``, ``threshold``, ``for_seconds``, ``severity``. Raises NotFound, InvalidInput,
    PermissionDenied."""
    rights.require(actor, Role.ADMIN, "changing rules")
    _require(name)
    spec = check(RuleSpec, values)
    given = {field: value for field, value in spec.model_dump().items() if value is not None}
    return _with(RULES[name], AlertRuleRepository(session).set_(name, given))


def declare(session: Session, *, name: str, actor: User | None = None, **values: Any) -> Rule:
    """Say all of a rule; what is None is as shipped. Raises NotFound, InvalidInput, PermissionDenied."""
    rights.require(actor, Role.ADMIN, "changing rules")
    _require(name)
    given = check(RuleSpec, values).model_dump()
    given["enabled"] = given["enabled"] is not False
    return _with(RULES[name], AlertRuleRepository(session).set_(name, given))


def reset(session: Session, *, name: str, actor: User | None = None) -> Rule:
    """Make it as shipped again. Raises NotFound, Conflict (it is), PermissionDenied."""
    rights.require(actor, Role.ADMIN, "changing rules")
    _require(name)
    if not AlertRuleRepository(session).forget(name):
        raise Conflict(f"rule {name} is as shipped already")
    return RULES[name]


def observe(session: Session, known: Alerts) -> Observation:
    """What is beyond its threshold now. A rule that could not be measured leaves its alerts as they are."""
    conditions: list[Condition] = []
    held: set[str] = set()
    watched = {name: rule for name, rule in all_(session).items() if rule.measure is not None}
    for name, rule in watched.items():
        if not rule.enabled:
            continue
        try:
            with savepoint(session):
                assert rule.measure is not None
                readings = rule.measure(session)
        except measures.CannotTell:
            readings = None
        except Exception as error:  # noqa: BLE001 - the other rules are looked at all the same
            log.warning("rule_not_measured", rule=name, error=f"{type(error).__name__}: {error}"[:200])
            readings = None
        if readings is None:
            held |= {fingerprint for fingerprint, alert in known.items() if alert.alert_type == name}
        else:
            conditions += [_condition(rule, each) for each in readings if rule.is_beyond(each.value)]
    return Observation(frozenset(watched), conditions, frozenset(held))


def _condition(rule: Rule, reading: measures.Reading) -> Condition:
    assert rule.severity is not None
    return Condition(
        fingerprint=f"{rule.name}:{reading.subject}" if reading.subject else rule.name,
        alert_type=rule.name,
        severity=rule.severity,
        title=f"{rule.says}: {reading.subject}" if reading.subject else rule.says,
        message=reading.message,
        labels={"rule": rule.name} | dict(reading.labels),
        for_seconds=rule.for_seconds,
        threshold_value=rule.threshold,
        current_value=reading.value,
        infrastructure_id=reading.infrastructure_id,
        application_id=reading.application_id,
        deployment_id=reading.deployment_id,
    )


def _with(rule: Rule, changed: AlertRule | None) -> Rule:
    if changed is None:
        return rule
    return replace(
        rule,
        enabled=changed.enabled,
        threshold=rule.threshold if changed.threshold is None else changed.threshold,
        for_seconds=rule.for_seconds if changed.for_seconds is None else changed.for_seconds,
        severity=changed.severity or rule.severity,
        is_changed=True,
    )


def _require(name: str) -> None:
    if name not in RULES:
        raise NotFound(f"there is no rule {name[:60]!r}", hint="ops rule list")


def known_names() -> Mapping[str, Rule]:
    """The rules as they are shipped."""
    return RULES
