"""SQL, one statement per method."""

from db.repositories.alert_rules import AlertRuleRepository
from db.repositories.alerts import AlertEventRepository, MonitoringAlertRepository
from db.repositories.applications import ApplicationRepository
from db.repositories.audit_logs import AuditLogRepository
from db.repositories.base import NumberedPage, Page, Repository
from db.repositories.check_history import CheckHistoryRepository, Uptime
from db.repositories.checks import CheckRepository, Claimed
from db.repositories.counters import CounterRepository
from db.repositories.deployments import DeploymentLogRepository, DeploymentRepository
from db.repositories.encryption import EncryptedTable, EncryptionKeyRepository, StoredRow, encrypted_tables
from db.repositories.hosts import DeploymentHostRepository, HostRepository
from db.repositories.infrastructure import InfrastructureRepository
from db.repositories.jobs import JobRepository, JobSpec
from db.repositories.login_limits import LoginLimitRepository
from db.repositories.notifications import ChannelRepository, NotificationRepository, RouteRepository
from db.repositories.processes import ProcessRepository
from db.repositories.schedules import ScheduleRepository, ScheduleRunRepository
from db.repositories.silences import MaintenanceWindowRepository, SilenceRepository
from db.repositories.stats import StatsRepository
from db.repositories.ticks import TickRepository
from db.repositories.users import APIKeyRepository, UserRepository

__all__ = [
    "APIKeyRepository",
    "AlertEventRepository",
    "AlertRuleRepository",
    "ApplicationRepository",
    "AuditLogRepository",
    "ChannelRepository",
    "CheckHistoryRepository",
    "CheckRepository",
    "Claimed",
    "CounterRepository",
    "DeploymentHostRepository",
    "DeploymentLogRepository",
    "DeploymentRepository",
    "EncryptedTable",
    "EncryptionKeyRepository",
    "HostRepository",
    "InfrastructureRepository",
    "JobRepository",
    "JobSpec",
    "LoginLimitRepository",
    "MaintenanceWindowRepository",
    "MonitoringAlertRepository",
    "NotificationRepository",
    "NumberedPage",
    "Page",
    "ProcessRepository",
    "Repository",
    "RouteRepository",
    "ScheduleRepository",
    "ScheduleRunRepository",
    "SilenceRepository",
    "StatsRepository",
    "StoredRow",
    "TickRepository",
    "Uptime",
    "UserRepository",
    "encrypted_tables",
]
