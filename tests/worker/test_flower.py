"""Flower shows and controls everything: it never starts open by mistake."""

from __future__ import annotations

import pytest

from db.errors import SettingsError
from tests.conftest import settings_from
from worker import flower


@pytest.mark.parametrize("arguments", [[], ["--basic-auth="], ["--port=5599"]])
@pytest.mark.parametrize("password", [None, ""])
def test_without_a_password_it_does_not_start(monkeypatch: pytest.MonkeyPatch, arguments, password) -> None:
    """Set and empty, as in a copied `.env.example`, is no password either."""
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    with (
        settings_from({} if password is None else {"FLOWER_BASIC_AUTH": password}),
        pytest.raises(SettingsError, match="set FLOWER_BASIC_AUTH=user:password"),
    ):
        flower.prepare(["-A", "worker.app", "flower", *arguments])
