"""SQL, one statement per method."""

from db.repositories.applications import ApplicationRepository
from db.repositories.audit_logs import AuditLogRepository
from db.repositories.base import Page, Repository
from db.repositories.deployments import DeploymentLogRepository, DeploymentRepository
from db.repositories.encryption import EncryptedTable, EncryptionKeyRepository, StoredRow, encrypted_tables
from db.repositories.infrastructure import InfrastructureRepository
from db.repositories.jobs import JobRepository, JobSpec
from db.repositories.users import APIKeyRepository, UserRepository

__all__ = [
    "APIKeyRepository",
    "ApplicationRepository",
    "AuditLogRepository",
    "DeploymentLogRepository",
    "DeploymentRepository",
    "EncryptedTable",
    "EncryptionKeyRepository",
    "InfrastructureRepository",
    "JobRepository",
    "JobSpec",
    "Page",
    "Repository",
    "StoredRow",
    "UserRepository",
    "encrypted_tables",
]
