"""Tables. Importing this package makes all of them known to ``Base.metadata``."""

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
from db.models.monitoring_alert import MonitoringAlert
from db.models.process import EncryptionKey, Process, Tick
from db.models.schedule import Schedule, ScheduleRun
from db.models.user import APIKey, User

__all__ = [
    "APIKey",
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
    "MonitoringAlert",
    "MonitoringCheck",
    "Process",
    "Schedule",
    "ScheduleRun",
    "Tick",
    "User",
]
