"""Cursors come back as they were given, or are refused."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from db import cursors
from db.errors import InvalidInput, SettingsError
from tests.conftest import settings_from

KEYS = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module", autouse=True)
def _key():
    with settings_from({"SECRET_KEY": "k" * 32}):
        yield


@given(KEYS)
def test_a_cursor_comes_back_as_the_key_it_was_made_of(key):
    cursor = cursors.seal("users", key)
    assert cursors.open_("users", cursor) == key
    assert len(cursor) == 32
    assert cursor.replace("-", "").replace("_", "").isalnum()


@given(KEYS, st.integers(0, 31), st.characters())
def test_a_changed_cursor_is_refused(key, place, letter):
    cursor = cursors.seal("users", key)
    forged = cursor[:place] + letter + cursor[place + 1 :]
    assume(forged != cursor)
    with pytest.raises(InvalidInput, match="this is no cursor of users"):
        cursors.open_("users", forged)


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers()))
def test_what_was_never_a_cursor_is_refused(said):
    with pytest.raises(InvalidInput):
        cursors.open_("users", said)


def test_a_cursor_of_another_list_or_of_another_key_is_refused():
    cursor = cursors.seal("users", 7)
    with pytest.raises(InvalidInput, match="no cursor of deployments"):
        cursors.open_("deployments", cursor)
    with settings_from({"SECRET_KEY": "x" * 32}), pytest.raises(InvalidInput):
        cursors.open_("users", cursor)


def test_without_a_secret_key_one_is_told_which_setting_is_missing():
    with settings_from({"SECRET_KEY": ""}), pytest.raises(SettingsError, match="SECRET_KEY is not set"):
        cursors.seal("users", 7)
