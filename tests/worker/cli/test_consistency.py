"""What a noun can do, others can: the same words for the same things."""

from __future__ import annotations

import pytest

from db.connection import get_db_session
from db.repositories import ChannelRepository
from db.services import channels
from tests.worker.cli.conftest import Ops


def reached(name: str) -> dict:
    with get_db_session(read_only=True) as session:
        return channels.open_config(ChannelRepository(session).require_by_name(name))


def test_a_rule_is_shown_and_put_back(ready: Ops) -> None:
    shipped = ready("--json", "rule", "show", "queue_age").json
    ready("rule", "set", "queue_age", "--threshold", "600")
    assert ready("--json", "rule", "show", "queue_age").json["threshold"] == 600
    assert ready("rule", "reset", "queue_age").code == 0
    assert ready("--json", "rule", "show", "queue_age").json == shipped
    assert ready("rule", "reset", "queue_age").code == 5
    assert ready("rule", "show", "nothing").code == 6


def test_a_channel_is_shown_without_its_address_and_edited_in_place(ready: Ops) -> None:
    ready("channel", "add", "pager", "webhook", "--url", "https://pager.example.com/hook")
    ready("route", "add", "pager", "--severity", "high")
    assert (
        ready("channel", "edit", "pager", "--replace", "url", stdin="https://new.example.com/x", user="ann").code == 0
    )
    assert ready("channel", "edit", "pager", "--name", "hook", "--rate", "30").code == 0
    shown = ready("--json", "channel", "show", "hook")
    assert (shown.json["rate_limit"], shown.json["routes"][0]["severity"]) == (30, "high")
    assert "example.com" not in shown.stdout
    assert reached("hook")["url"] == "https://new.example.com/x"
    assert "one can replace url, secret" in ready("channel", "edit", "hook", "--replace", "password", stdin="x").error
    assert ready("channel", "edit", "hook").code == 2
    assert ready("channel", "show", "pager").code == 6


@pytest.mark.parametrize("noun", ["silence", "maintenance"])
def test_silences_and_maintenance_come_in_pages(ready: Ops, noun: str) -> None:
    words = ["disks"] if noun == "maintenance" else []
    for n in range(3):
        assert ready(noun, "add", *words, "--match", f"check=c{n}", "--for", "1h").code == 0
    first = ready("--json", noun, "list", "--limit", "2").json
    assert [each["id"] for each in first["items"]] == [3, 2]
    rest = ready("--json", noun, "list", "--limit", "2", "--before", str(first["next"])).json
    assert [each["id"] for each in rest["items"]] == [1]


def test_hosts_are_put_into_another_order(ready: Ops) -> None:
    for name in ("a", "b", "c"):
        ready("infra", "host", "add", "local", name, f"{name}.example.org")
    assert ready("--json", "infra", "host", "order", "local", "c", "A", "b").json == {"hosts": ["c", "a", "b"]}
    refused = ready("infra", "host", "order", "local", "c", "a")
    assert (refused.code, "names each host of local once" in refused.error) == (2, True)
    assert ready("infra", "host", "order", "local", "c", "a", "a").code == 2
