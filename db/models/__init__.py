"""Tables. Importing this package makes all of them known to ``Base.metadata``."""

from db.models.alert_rule import AlertRule
from db.models.application import Application
from db.models.audit_log import AuditLog
from db.models.audit_seal import AuditSeal
from db.models.base import Base
from db.models.check import CheckInterval, CheckResult, CheckRollup, CheckStanding, MonitoringCheck
from db.models.counter import Counter, CounterPosition
from db.models.deployment import Deployment, DeploymentLog
from db.models.host import DeploymentHost, Host
from db.models.infrastructure import Infrastructure
from db.models.job import Job
from db.models.ledger_state import LedgerState
from db.models.login_limit import LoginLimit
from db.models.monitoring_alert import AlertEvent, MonitoringAlert
from db.models.notification import Notification, NotificationChannel, NotificationRoute
from db.models.process import EncryptionKey, Process, Tick
from db.models.schedule import Schedule, ScheduleRun
from db.models.silence import MaintenanceWindow, Silence
from db.models.user import APIKey, User

__all__ = [
    "APIKey",
    "AlertEvent",
    "AlertRule",
    "Application",
    "AuditLog",
    "AuditSeal",
    "Base",
    "CheckInterval",
    "CheckResult",
    "CheckRollup",
    "CheckStanding",
    "Counter",
    "CounterPosition",
    "Deployment",
    "DeploymentHost",
    "DeploymentLog",
    "EncryptionKey",
    "Host",
    "Infrastructure",
    "Job",
    "LedgerState",
    "LoginLimit",
    "MaintenanceWindow",
    "MonitoringAlert",
    "MonitoringCheck",
    "Notification",
    "NotificationChannel",
    "NotificationRoute",
    "Process",
    "Schedule",
    "ScheduleRun",
    "Silence",
    "Tick",
    "User",
]
