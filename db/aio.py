"""The front door for an application with an event loop: the same names, to be awaited.

Nothing is done twice: each method runs the one of the same name in :mod:`db.service` or :mod:`db.repositories` by
``AsyncSession.run_sync``, on psycopg's async driver. What would hold up the loop goes to a thread: hashing a password,
deriving the encryption keys, ringing the broker after a commit. Sealing and opening a value take some 20 us and do not.

::

    async with get_db_session() as session:
        user = await DatabaseService(session).authenticate("alice", password, ip_address=peer)

For anything else: ``await session.run_sync(lambda sync: ...)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from db import repositories, service
from db.connection import engine_options, outages, start_context
from db.encryption import get_keyring
from db.errors import SettingsError
from db.models import User
from db.settings import get_settings

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Awaited = Coroutine[Any, Any, R]

#: Connections belong to the loop that made them.
_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncEngine] = WeakKeyDictionary()


def get_engine() -> AsyncEngine:
    """The running loop's engine, with a pool as the sync one has. Raises SettingsError when no database is named."""
    loop = asyncio.get_running_loop()
    engine = _engines.get(loop)
    if engine is None:
        engine = _engines[loop] = create_async_engine(get_settings().require_database_url(), **engine_options())
    return engine


async def dispose() -> None:
    """Close the running loop's pooled connections; await it before the loop ends."""
    engine = _engines.pop(asyncio.get_running_loop(), None)
    if engine is not None:
        await engine.dispose()


@asynccontextmanager
async def get_db_session(*, read_only: bool = False, **context: Any) -> AsyncIterator[AsyncSession]:
    """A session that commits on success and rolls back on error, also when its task is cancelled.

    ``read_only`` and the audit context are as for :func:`db.connection.get_db_session`. Raises DatabaseUnavailable when
    the database cannot be reached, or no connection comes free.
    """
    with suppress(SettingsError):  # whoever needs a key is told so
        await asyncio.to_thread(get_keyring)
    engine = get_engine()
    bind = engine.execution_options(postgresql_readonly=True) if read_only else engine
    session = AsyncSession(bind=bind, expire_on_commit=False)
    start_context(session.sync_session, context)
    with outages():
        async with session:
            yield session
            await session.commit()


class _Lifted(Generic[S]):
    """Awaits what an object made in the session's greenlet does."""

    def __init__(self, session: AsyncSession, make: Callable[[Any], S]) -> None:
        self.session = session
        self._make = make

    async def _run(self, method: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return await self.session.run_sync(lambda sync: method(self._make(sync), *args, **kwargs))


def _lift(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[_Lifted[Any], P], Awaited[R]]:
    @wraps(method)
    async def run(self: _Lifted[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(method, *args, **kwargs)

    return run


class DatabaseService(_Lifted[service.DatabaseService]):
    """:class:`db.service.DatabaseService`, to be awaited."""

    def __init__(self, session: AsyncSession, actor: User | None = None) -> None:
        made = service.DatabaseService(session.sync_session, actor)
        super().__init__(session, lambda _: made)
        self.actor = actor

    create_user_with_audit = _lift(service.DatabaseService.create_user_with_audit)
    authenticate = _lift(service.DatabaseService.authenticate)
    get_user = _lift(service.DatabaseService.get_user)
    list_users = _lift(service.DatabaseService.list_users)
    set_password = _lift(service.DatabaseService.set_password)
    set_user_role = _lift(service.DatabaseService.set_user_role)
    set_user_active = _lift(service.DatabaseService.set_user_active)
    store_api_key = _lift(service.DatabaseService.store_api_key)
    list_api_keys = _lift(service.DatabaseService.list_api_keys)
    delete_api_key = _lift(service.DatabaseService.delete_api_key)
    register_application = _lift(service.DatabaseService.register_application)
    edit_application = _lift(service.DatabaseService.edit_application)
    remove_application = _lift(service.DatabaseService.remove_application)
    get_application = _lift(service.DatabaseService.get_application)
    list_applications = _lift(service.DatabaseService.list_applications)
    register_infrastructure = _lift(service.DatabaseService.register_infrastructure)
    edit_infrastructure = _lift(service.DatabaseService.edit_infrastructure)
    remove_infrastructure = _lift(service.DatabaseService.remove_infrastructure)
    get_infrastructure = _lift(service.DatabaseService.get_infrastructure)
    list_infrastructure = _lift(service.DatabaseService.list_infrastructure)
    create_deployment = _lift(service.DatabaseService.create_deployment)
    update_deployment_status = _lift(service.DatabaseService.update_deployment_status)
    cancel_deployment = _lift(service.DatabaseService.cancel_deployment)
    retry_deployment = _lift(service.DatabaseService.retry_deployment)
    rollback = _lift(service.DatabaseService.rollback)
    get_deployment = _lift(service.DatabaseService.get_deployment)
    list_deployments = _lift(service.DatabaseService.list_deployments)
    read_deployment_log = _lift(service.DatabaseService.read_deployment_log)
    add_check = _lift(service.DatabaseService.add_check)
    edit_check = _lift(service.DatabaseService.edit_check)
    pause_check = _lift(service.DatabaseService.pause_check)
    resume_check = _lift(service.DatabaseService.resume_check)
    remove_check = _lift(service.DatabaseService.remove_check)
    get_check = _lift(service.DatabaseService.get_check)
    list_checks = _lift(service.DatabaseService.list_checks)
    read_check_history = _lift(service.DatabaseService.read_check_history)
    ping_heartbeat = _lift(service.DatabaseService.ping_heartbeat)
    list_alerts = _lift(service.DatabaseService.list_alerts)
    get_alert = _lift(service.DatabaseService.get_alert)
    read_alert_timeline = _lift(service.DatabaseService.read_alert_timeline)
    acknowledge_alert = _lift(service.DatabaseService.acknowledge_alert)
    assign_alert = _lift(service.DatabaseService.assign_alert)
    note_alert = _lift(service.DatabaseService.note_alert)
    resolve_alert = _lift(service.DatabaseService.resolve_alert)
    silence_alert = _lift(service.DatabaseService.silence_alert)
    add_silence = _lift(service.DatabaseService.add_silence)
    end_silence = _lift(service.DatabaseService.end_silence)
    list_silences = _lift(service.DatabaseService.list_silences)
    plan_maintenance = _lift(service.DatabaseService.plan_maintenance)
    end_maintenance = _lift(service.DatabaseService.end_maintenance)
    list_maintenance = _lift(service.DatabaseService.list_maintenance)
    add_schedule = _lift(service.DatabaseService.add_schedule)
    edit_schedule = _lift(service.DatabaseService.edit_schedule)
    pause_schedule = _lift(service.DatabaseService.pause_schedule)
    resume_schedule = _lift(service.DatabaseService.resume_schedule)
    run_schedule = _lift(service.DatabaseService.run_schedule)
    remove_schedule = _lift(service.DatabaseService.remove_schedule)
    get_schedule = _lift(service.DatabaseService.get_schedule)
    list_schedules = _lift(service.DatabaseService.list_schedules)
    read_schedule_times = _lift(service.DatabaseService.read_schedule_times)
    read_schedule_runs = _lift(service.DatabaseService.read_schedule_runs)
    add_host = _lift(service.DatabaseService.add_host)
    edit_host = _lift(service.DatabaseService.edit_host)
    order_hosts = _lift(service.DatabaseService.order_hosts)
    remove_host = _lift(service.DatabaseService.remove_host)
    list_hosts = _lift(service.DatabaseService.list_hosts)
    list_deployment_hosts = _lift(service.DatabaseService.list_deployment_hosts)
    beat_heartbeat = _lift(service.DatabaseService.beat_heartbeat)
    search_audit = _lift(service.DatabaseService.search_audit)
    get_user_activity = _lift(service.DatabaseService.get_user_activity)


class UserRepository(_Lifted[repositories.UserRepository]):
    """:class:`db.repositories.UserRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.UserRepository)

    get = _lift(repositories.UserRepository.get)
    require = _lift(repositories.UserRepository.require)
    add = _lift(repositories.UserRepository.add)
    change = _lift(repositories.UserRepository.change)
    delete = _lift(repositories.UserRepository.delete)
    list_ = _lift(repositories.UserRepository.list_)
    page = _lift(repositories.UserRepository.page)
    get_by_username = _lift(repositories.UserRepository.get_by_username)
    get_by_email = _lift(repositories.UserRepository.get_by_email)
    require_by_username = _lift(repositories.UserRepository.require_by_username)
    lock_active_admins = _lift(repositories.UserRepository.lock_active_admins)
    get_with_relations = _lift(repositories.UserRepository.get_with_relations)


class APIKeyRepository(_Lifted[repositories.APIKeyRepository]):
    """:class:`db.repositories.APIKeyRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.APIKeyRepository)

    get = _lift(repositories.APIKeyRepository.get)
    require = _lift(repositories.APIKeyRepository.require)
    add = _lift(repositories.APIKeyRepository.add)
    change = _lift(repositories.APIKeyRepository.change)
    delete = _lift(repositories.APIKeyRepository.delete)
    list_ = _lift(repositories.APIKeyRepository.list_)
    page = _lift(repositories.APIKeyRepository.page)
    get_user_keys = _lift(repositories.APIKeyRepository.get_user_keys)
    get_by_name = _lift(repositories.APIKeyRepository.get_by_name)
    list_with_owners = _lift(repositories.APIKeyRepository.list_with_owners)


class ApplicationRepository(_Lifted[repositories.ApplicationRepository]):
    """:class:`db.repositories.ApplicationRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.ApplicationRepository)

    get = _lift(repositories.ApplicationRepository.get)
    require = _lift(repositories.ApplicationRepository.require)
    add = _lift(repositories.ApplicationRepository.add)
    change = _lift(repositories.ApplicationRepository.change)
    delete = _lift(repositories.ApplicationRepository.delete)
    list_ = _lift(repositories.ApplicationRepository.list_)
    page = _lift(repositories.ApplicationRepository.page)
    get_by_name = _lift(repositories.ApplicationRepository.get_by_name)
    require_by_name = _lift(repositories.ApplicationRepository.require_by_name)


class InfrastructureRepository(_Lifted[repositories.InfrastructureRepository]):
    """:class:`db.repositories.InfrastructureRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.InfrastructureRepository)

    get = _lift(repositories.InfrastructureRepository.get)
    require = _lift(repositories.InfrastructureRepository.require)
    add = _lift(repositories.InfrastructureRepository.add)
    change = _lift(repositories.InfrastructureRepository.change)
    delete = _lift(repositories.InfrastructureRepository.delete)
    list_ = _lift(repositories.InfrastructureRepository.list_)
    page = _lift(repositories.InfrastructureRepository.page)
    get_by_name = _lift(repositories.InfrastructureRepository.get_by_name)
    require_by_name = _lift(repositories.InfrastructureRepository.require_by_name)
    get_with_relations = _lift(repositories.InfrastructureRepository.get_with_relations)
    get_user_infrastructure = _lift(repositories.InfrastructureRepository.get_user_infrastructure)


class DeploymentRepository(_Lifted[repositories.DeploymentRepository]):
    """:class:`db.repositories.DeploymentRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.DeploymentRepository)

    get = _lift(repositories.DeploymentRepository.get)
    require = _lift(repositories.DeploymentRepository.require)
    add = _lift(repositories.DeploymentRepository.add)
    lock_way_back = _lift(repositories.DeploymentRepository.lock_way_back)
    delete = _lift(repositories.DeploymentRepository.delete)
    change = _lift(repositories.DeploymentRepository.change)
    move = _lift(repositories.DeploymentRepository.move)
    list_ = _lift(repositories.DeploymentRepository.list_)
    page = _lift(repositories.DeploymentRepository.page)
    get_with_relations = _lift(repositories.DeploymentRepository.get_with_relations)
    get_by_job = _lift(repositories.DeploymentRepository.get_by_job)
    get_user_deployments = _lift(repositories.DeploymentRepository.get_user_deployments)
    list_with_names = _lift(repositories.DeploymentRepository.list_with_names)
    search = _lift(repositories.DeploymentRepository.search)
    status = _lift(repositories.DeploymentRepository.status)
    latest = _lift(repositories.DeploymentRepository.latest)
    latest_begun = _lift(repositories.DeploymentRepository.latest_begun)
    good_before = _lift(repositories.DeploymentRepository.good_before)
    get_frozen = _lift(repositories.DeploymentRepository.get_frozen)
    pin = _lift(repositories.DeploymentRepository.pin)


class MonitoringAlertRepository(_Lifted[repositories.MonitoringAlertRepository]):
    """:class:`db.repositories.MonitoringAlertRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.MonitoringAlertRepository)

    get = _lift(repositories.MonitoringAlertRepository.get)
    require = _lift(repositories.MonitoringAlertRepository.require)
    add = _lift(repositories.MonitoringAlertRepository.add)
    change = _lift(repositories.MonitoringAlertRepository.change)
    delete = _lift(repositories.MonitoringAlertRepository.delete)
    list_ = _lift(repositories.MonitoringAlertRepository.list_)
    page = _lift(repositories.MonitoringAlertRepository.page)
    search = _lift(repositories.MonitoringAlertRepository.search)
    list_open = _lift(repositories.MonitoringAlertRepository.list_open)
    get_open = _lift(repositories.MonitoringAlertRepository.get_open)
    assign = _lift(repositories.MonitoringAlertRepository.assign)
    acknowledge = _lift(repositories.MonitoringAlertRepository.acknowledge)
    resolve = _lift(repositories.MonitoringAlertRepository.resolve)


class AuditLogRepository(_Lifted[repositories.AuditLogRepository]):
    """:class:`db.repositories.AuditLogRepository`, to be awaited."""

    def __init__(self, session: AsyncSession) -> None:
        super().__init__(session, repositories.AuditLogRepository)

    add = _lift(repositories.AuditLogRepository.add)
    search = _lift(repositories.AuditLogRepository.search)
    story = _lift(repositories.AuditLogRepository.story)
    deployments = _lift(repositories.AuditLogRepository.deployments)
    owners = _lift(repositories.AuditLogRepository.owners)
    get_user_activity = _lift(repositories.AuditLogRepository.get_user_activity)
