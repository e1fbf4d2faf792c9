"""Flower, closed: it shows every task and controls every worker, so it does not start without a password.

`celery -A worker.app flower` takes its user and password from ``FLOWER_BASIC_AUTH`` like any other setting of ours
(environment, ``.env``, the embedded stack), and asks for them on ``/metrics`` and ``/healthcheck`` too, which Flower
itself leaves open.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from db.errors import SettingsError
from db.settings import get_settings

_OPTIONS = ("--basic-auth", "--basic_auth", "--auth")


def prepare(arguments: Sequence[str]) -> None:
    """Where the command line asks for Flower, close it. Raises SettingsError when no password is set."""
    if "flower" not in arguments:
        return
    settings = get_settings()
    if settings.flower_basic_auth is not None:
        os.environ["FLOWER_BASIC_AUTH"] = settings.flower_basic_auth.get_secret_value()
    given = any(word.partition("=")[0] in _OPTIONS and not word.endswith("=") for word in arguments)
    # One that is set and empty, as in a copied `.env.example`, is none.
    if not given and not os.environ.get("FLOWER_BASIC_AUTH") and not settings.debug:
        raise SettingsError(
            "Flower shows and controls everything, and no password is set; set FLOWER_BASIC_AUTH=user:password"
        )
    _close_open_pages()


def _close_open_pages() -> None:
    from flower.views import monitor
    from tornado.web import authenticated

    for page in (monitor.Metrics, monitor.Healthcheck):
        page.get = authenticated(page.get)
