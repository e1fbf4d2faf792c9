"""Where settings come from, which of them wins, and what somebody reads who got one wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from db.encryption import get_keyring, reset_keyring
from db.errors import SettingsError
from db.settings import (
    SECRETS,
    Settings,
    env_files,
    find_data_dir,
    get_settings,
    libpq_conninfo,
    normalise_database_url,
    origin,
)

GOOD = "postgresql://ops:p%40ss@localhost/db"
HIDDEN = "hunter2-do-not-show"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder of the test's own, a data folder above it, and nothing remembered."""
    here = tmp_path / "project" / "deep" / "down"
    here.mkdir(parents=True)
    (tmp_path / "project" / ".ops").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("OPS_DATA_DIR")
    get_settings.cache_clear()
    reset_keyring()
    yield here
    get_settings.cache_clear()
    reset_keyring()


@pytest.fixture
def dotenv(home: Path) -> Callable[[str], Path]:
    return lambda text: _write(home / ".env", text)


@pytest.fixture
def data_env(tmp_path: Path) -> Callable[[str], Path]:
    return lambda text: _write(tmp_path / "project" / ".ops" / "env", text)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def one_line(error: pytest.ExceptionInfo[SettingsError], *parts: str) -> None:
    """The message is one line that has these parts and not the value."""
    message = str(error.value)
    assert "\n" not in message
    assert HIDDEN not in message
    for part in parts:
        assert part in message
    assert error.value.__cause__ is None
    assert error.value.exit_code == 2


def test_the_environment_beats_dotenv_and_dotenv_beats_the_data_folder(monkeypatch, dotenv, data_env):
    data_env("OPS_USER=data\nOPS_JOB_RETENTION_DAYS=1\nOPS_LOG_RETENTION_DAYS=1\n")
    dotenv("OPS_USER=dotenv\nOPS_JOB_RETENTION_DAYS=2\n")
    monkeypatch.setenv("OPS_USER", "environment")
    settings = get_settings()
    assert (settings.user, settings.job_retention_days, settings.log_retention_days) == ("environment", 2, 1)


def test_an_empty_variable_counts_as_not_set(monkeypatch, dotenv):
    dotenv("OPS_USER=dotenv\n")
    monkeypatch.setenv("OPS_USER", "")
    monkeypatch.setenv("OPS_DATABASE_POOL_SIZE", "")
    assert get_settings().user == "dotenv"
    assert get_settings().database_pool_size == 10


@pytest.mark.parametrize("alias", ["OPS_BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL"])
def test_the_broker_is_known_by_three_names(monkeypatch, alias):
    monkeypatch.setenv(alias, "redis://one:6379/0")
    assert get_settings().require_broker_url() == "redis://one:6379/0"


def test_our_own_name_of_the_broker_beats_the_common_ones_but_not_a_stronger_source(monkeypatch, dotenv, data_env):
    data_env("OPS_BROKER_URL=redis://data\n")
    dotenv("REDIS_URL=redis://redis\nCELERY_BROKER_URL=redis://celery\n")
    assert get_settings().require_broker_url() == "redis://celery"
    get_settings.cache_clear()
    monkeypatch.setenv("REDIS_URL", "redis://environment")
    assert get_settings().require_broker_url() == "redis://environment"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_given_as_a_file(monkeypatch, tmp_path, name):
    monkeypatch.setenv(f"{name}_FILE", str(_write(tmp_path / "secret", f"{HIDDEN}\n")))
    found = [field for field, value in Settings() if hasattr(value, "get_secret_value")]
    assert len(found) == 1
    assert getattr(Settings(), found[0]).get_secret_value() == HIDDEN


def test_a_value_beats_its_file_and_a_file_in_the_environment_beats_dotenv(monkeypatch, tmp_path, dotenv):
    file = _write(tmp_path / "secret", "from the file")
    dotenv("SECRET_KEY=from dotenv\n")
    monkeypatch.setenv("SECRET_KEY_FILE", str(file))
    assert Settings().secret_key.get_secret_value() == "from the file"
    monkeypatch.setenv("SECRET_KEY", "from the environment")
    assert Settings().secret_key.get_secret_value() == "from the environment"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe\x00", "not text"), (b" \n", "is empty")],
    ids=["missing", "binary", "empty"],
)
def test_a_secret_file_that_gives_nothing_is_an_error_and_never_no_secret(monkeypatch, tmp_path, content, reason):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("ENCRYPTION_KEY_FILE", str(path))
    with pytest.raises(SettingsError) as error:
        get_settings()
    one_line(error, "ENCRYPTION_KEY_FILE", str(path), reason)


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("DATABASE_DEBUG", HIDDEN, "false"),
        ("DEBUG", HIDDEN, "false"),
        ("OPS_DATABASE_SCHEMA", f"No-{HIDDEN}", "ops"),
        ("OPS_DATABASE_POOL_SIZE", HIDDEN, "10"),
        ("OPS_DATABASE_MAX_OVERFLOW", "-1", "20"),
        ("OPS_PBKDF2_ITERATIONS", "1000", "600000"),
        ("OPS_SHUTDOWN_SECONDS", HIDDEN, "30"),
        ("OPS_DEPLOYMENT_LOG_BYTES", "1", "10000000"),
        ("OPS_JOB_RETENTION_DAYS", "0", "30"),
        ("OPS_LOG_RETENTION_DAYS", HIDDEN, "90"),
        ("OPS_AUDIT_RETENTION_DAYS", "89", "730"),
    ],
)
def test_a_malformed_value_is_one_line_that_names_it_and_shows_a_good_one(monkeypatch, name, value, good):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        get_settings()
    one_line(error, name, "malformed", f"for example {good}")


def test_a_missing_value_is_one_line_that_names_it_and_shows_a_good_one():
    for ask, name, good in (
        (get_settings().require_database_url, "DATABASE_URL", "postgresql://"),
        (get_settings().require_broker_url, "OPS_BROKER_URL", "redis://"),
        (get_settings().require_secret_key, "SECRET_KEY", "32 random characters"),
    ):
        with pytest.raises(SettingsError) as error:
            ask()
        one_line(error, name, "not set", good)


def test_a_short_secret_key_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", HIDDEN)
    with pytest.raises(SettingsError) as error:
        get_settings().require_secret_key()
    one_line(error, "SECRET_KEY", "32 random characters")


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"ENCRYPTION_KEY": HIDDEN}, ("ENCRYPTION_KEY", "ops encryption-key new")),
        ({"ENCRYPTION_KEY": "ä" + HIDDEN}, ("ENCRYPTION_KEY", "ops encryption-key new")),
        ({"ENCRYPTION_PASSWORD": HIDDEN}, ("ENCRYPTION_SALT is not set", "16 random characters")),
        ({"ENCRYPTION_PASSWORD": HIDDEN, "ENCRYPTION_SALT": "short"}, ("ENCRYPTION_SALT is too short",)),
        ({"OPS_ENCRYPTION_KEYS": HIDDEN}, ("OPS_ENCRYPTION_KEYS", "2026:<key>")),
        ({"OPS_ENCRYPTION_KEYS": f"2026:{HIDDEN}"}, ("OPS_ENCRYPTION_KEYS", "32 bytes in base64")),
        ({"OPS_ENCRYPTION_KEYS": f"bad id:{HIDDEN}"}, ("OPS_ENCRYPTION_KEYS", "2026:<key>")),
    ],
)
def test_a_malformed_encryption_key_is_one_line_that_never_shows_it(monkeypatch, environment, parts):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        get_keyring()
    one_line(error, *parts)


def test_settings_show_no_secret_when_printed(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, HIDDEN)
    assert HIDDEN not in repr(get_settings()) + str(get_settings()) + get_settings().model_dump_json()


def test_a_settings_file_that_cannot_be_read_is_one_line(home, dotenv):
    dotenv("").write_bytes(b"OPS_USER=\xff\n")
    with pytest.raises(SettingsError) as error:
        get_settings()
    one_line(error, "UTF-8")
    (home / ".env").unlink()
    (home / ".env").symlink_to("/proc/self/mem")  # a file whose reading fails, even for root
    with pytest.raises(SettingsError) as error:
        get_settings()
    one_line(error, "cannot be read")


def test_a_mark_at_the_start_of_a_file_hides_no_setting(dotenv):
    dotenv("\N{ZERO WIDTH NO-BREAK SPACE}OPS_USER=anna\n")
    assert get_settings().user == "anna"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgres://u:p%40@h:1/d", "postgresql+psycopg://u:p%40@h:1/d"),
        ("postgresql://u@/d?host=/run/pg", "postgresql+psycopg://u@/d?host=/run/pg"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d?ssl=verify-full", "postgresql+psycopg://u:p@h/d?sslmode=verify-full"),
        ("postgresql+asyncpg://h/d?user=u&ssl=require", "postgresql+psycopg://h/d?user=u&sslmode=require"),
        ("postgresql+asyncpg://h/d?ssl=true", "postgresql+psycopg://h/d?sslmode=require"),
        ("postgresql+asyncpg://h/d?ssl=False", "postgresql+psycopg://h/d?sslmode=disable"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg_async://h/d?sslmode=require", "postgresql+psycopg://h/d?sslmode=require"),
    ],
)
def test_the_spellings_of_a_database_url_are_mapped_to_one_driver(given, meant):
    assert normalise_database_url(given) == meant
    assert make_url(meant).drivername == "postgresql+psycopg"
    assert conninfo_to_dict(libpq_conninfo(meant)) == conninfo_to_dict(meant.replace("+psycopg", "", 1))


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{HIDDEN}@h/d",
        f"sqlite:///{HIDDEN}",
        HIDDEN,
        f"postgresql+pg8000://u:{HIDDEN}@h/d",
        f"postgresql://u:x@{HIDDEN}@host/d",
        f"postgresql://u@h:{HIDDEN}/d",
        f"postgresql://h/d?{HIDDEN}=1",
    ],
)
def test_a_url_that_no_driver_here_would_take_is_refused_without_showing_it(monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", GOOD)
    monkeypatch.setenv("OPS_DATABASE_OWNER_URL", url)
    settings = get_settings()
    assert settings.require_database_url().endswith("@localhost/db")
    with pytest.raises(SettingsError) as error:
        settings.require_database_url(owner=True)
    one_line(error, "OPS_DATABASE_OWNER_URL", "for example postgresql://")


def test_the_owner_falls_back_to_the_runtime_role(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", GOOD)
    assert get_settings().require_database_url(owner=True) == get_settings().require_database_url()


def test_the_data_folder_is_found_upwards_unless_it_is_named(monkeypatch, tmp_path, home):
    assert find_data_dir() == tmp_path / "project" / ".ops"
    (home / ".ops").mkdir()
    assert find_data_dir() == home / ".ops"
    assert find_data_dir(tmp_path / "project") == tmp_path / "project" / ".ops"
    monkeypatch.setenv("OPS_DATA_DIR", "elsewhere")
    assert find_data_dir() == home / "elsewhere"


def test_without_a_data_folder_there_is_none(tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / ".ops").write_text("a file, not a folder")
    found = find_data_dir(tmp_path / "alone")
    assert found is None or not found.is_relative_to(tmp_path)  # what is above is not the test's


def test_only_files_that_exist_are_read(dotenv, data_env):
    assert env_files() == []
    named = dotenv("")
    found = data_env("")
    assert env_files() == [named, found]


def test_the_origin_of_a_value_is_the_source_that_it_is_taken_from(monkeypatch, tmp_path, dotenv, data_env):
    names = ("OPS_BROKER_URL", "CELERY_BROKER_URL", "REDIS_URL")
    assert origin(*names) is None
    found = data_env(f"OPS_BROKER_URL_FILE={_write(tmp_path / 'url', 'redis://file')}\n")
    assert origin(*names) == str(found)
    named = dotenv("# REDIS_URL=redis://a\nOPS_BROKER_URL=''\n")
    assert origin(*names) == str(found)
    named = dotenv("export REDIS_URL=redis://b\n")
    assert origin(*names) == str(named)
    assert get_settings().require_broker_url() == "redis://b"
    monkeypatch.setenv("REDIS_URL_FILE", "/nowhere")
    assert origin("DATABASE_URL") is None
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://c")
    assert origin(*names) == "environment (CELERY_BROKER_URL)"
