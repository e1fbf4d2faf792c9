"""What is put into the environment, or into .env, is what comes out of the settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dotenv import set_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from db.errors import Refused
from db.settings import SECRETS, Settings, get_settings
from worker.cli import envfile

pytestmark = pytest.mark.slow

#: Whatever an environment can hold, and a file by lines.
SIGNS = ["${", "}", "HOME", ":-", "$", "'", '"', "\\", "#", " ", "=", "x", "%", "export "]
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1),
    st.lists(st.sampled_from(SIGNS), min_size=1, max_size=6).map("".join),
)
FLAGS = st.sampled_from(["true", "false", "1", "0", "yes", "no", "on", "off", "True", "FALSE"])
LEGAL: dict[str, st.SearchStrategy[str]] = {
    "DATABASE_DEBUG": FLAGS,
    "DEBUG": FLAGS,
    "OPS_DATABASE_SCHEMA": st.from_regex(r"[a-z_][a-z0-9_]{0,62}", fullmatch=True),
    "OPS_DATABASE_POOL_SIZE": st.integers(1, 200).map(str),
    "OPS_DATABASE_MAX_OVERFLOW": st.integers(0, 500).map(str),
    "OPS_DATABASE_POOLER": st.sampled_from(["none", "transaction"]),
    "OPS_DATABASE_STATEMENT_SECONDS": st.integers(0, 86400).map(str),
    "OPS_DATABASE_POOL_TIMEOUT": st.floats(0.001, 600).map(str),
    "OPS_PBKDF2_ITERATIONS": st.integers(100_000, 100_000_000).map(str),
    "OPS_SHUTDOWN_SECONDS": st.integers(1, 3600).map(str),
    "OPS_STATUS_TITLE": st.from_regex(r"[A-Za-z][A-Za-z0-9 ]{0,40}[A-Za-z]", fullmatch=True),
    "OPS_LOG_FORMAT": st.sampled_from(["text", "json"]),
    "OPS_REMOTE_CONTROL": st.sampled_from(["read", "full"]),
    "OPS_DEPLOYMENT_LOG_BYTES": st.integers(10_000, 1_000_000_000).map(str),
    "OPS_JOB_RETENTION_DAYS": st.integers(1, 3650).map(str),
    "OPS_LOG_RETENTION_DAYS": st.integers(1, 3650).map(str),
    "OPS_AUDIT_RETENTION_DAYS": st.integers(90, 36500).map(str),
    "OPS_ALERT_RETENTION_DAYS": st.integers(1, 3650).map(str),
    "OPS_CHECK_RESULT_DAYS": st.integers(2, 400).map(str),
    "OPS_CHECK_HOUR_DAYS": st.integers(8, 3650).map(str),
    "OPS_CHECK_HISTORY_DAYS": st.integers(90, 36500).map(str),
    "OPS_PROBE_ALLOW": st.sampled_from(["10.0.0.0/8", "10.1.0.0/16,fd00::/8"]),
    "OPS_PRIVATE_HOSTS": TEXT,
    "OPS_ALIVE_FILE": st.from_regex(r"(/[\w .-]*\w){1,3}", fullmatch=True),
    "OPS_ENCRYPTION_PRIMARY": TEXT,
    "OPS_AUDIT_VERIFY_KEY": TEXT,
    "OPS_AUDIT_SEAL_FILE": st.from_regex(r"(/[\w .-]*\w){1,3}", fullmatch=True),
    "OPS_USER": TEXT,
    "OPS_BACKUP_STAMP": TEXT,
} | dict.fromkeys(SECRETS, TEXT)
ENVIRONMENTS = st.fixed_dictionaries({}, optional=LEGAL)
FIELDS = {
    choice: name
    for name, field in Settings.model_fields.items()
    for choice in getattr(field.validation_alias, "choices", [field.validation_alias])
}
MANY = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder without any settings, and nothing remembered."""
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield tmp_path
    get_settings.cache_clear()


def test_every_setting_is_tried_here():
    assert set(LEGAL) == set(FIELDS) - {"CELERY_BROKER_URL", "REDIS_URL"}


def comes_out(given_: dict[str, str]) -> None:
    found = Settings()
    for name, text in given_.items():
        assert says(getattr(found, FIELDS[name]), text), name
    for name in set(FIELDS) - set(given_) - {"CELERY_BROKER_URL", "REDIS_URL"}:
        assert getattr(found, FIELDS[name]) == Settings.model_fields[FIELDS[name]].default, name


def says(value: Any, text: str) -> bool:
    """True when a setting's value is what the text means."""
    match value:
        case bool():
            return value is (text.lower() in ("true", "1", "yes", "on"))
        case int() | float():
            return value == type(value)(text)
        case SecretStr():
            return value.get_secret_value() == text
        case Path():
            return value == Path(text)
        case _:
            return bool(value == text)


@MANY
@given(ENVIRONMENTS)
def test_what_the_environment_says_comes_out(given_: dict[str, str]):
    with pytest.MonkeyPatch.context() as patch:
        for name in FIELDS:
            patch.delenv(name, raising=False)
        for name, text in given_.items():
            patch.setenv(name, text)
        comes_out(given_)


def nothing_is_set(patch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name in FIELDS:
            patch.delenv(name)


@MANY
@given(ENVIRONMENTS)
def test_what_is_quoted_in_a_file_comes_out(given_: dict[str, str]):
    path = Path(".env")
    path.write_text("")
    for name, text in given_.items():
        set_key(path, name, text, quote_mode="always")
    with pytest.MonkeyPatch.context() as patch:
        nothing_is_set(patch)
        comes_out(given_)


@MANY
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(SECRETS, TEXT)))
def test_what_a_command_writes_into_a_file_comes_out_or_is_refused(given_: dict[str, str]):
    path = Path(".env")
    before = "# ours\nOPS_USER='ann'  # a person\n"
    path.write_text(before)
    with pytest.MonkeyPatch.context() as patch:
        nothing_is_set(patch)
        try:
            envfile.change(path, given_)
        except Refused:
            assert path.read_text() == before
            assert Settings().user == "ann"
        else:
            comes_out(given_ | {"OPS_USER": "ann"})
