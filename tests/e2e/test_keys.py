"""A key is changed while workers work: no deployment fails to open its secret on the way."""

from __future__ import annotations

from itertools import count

import pytest

from db.connection import get_db_session
from db.encryption import get_keyring, new_key
from db.service import DatabaseService
from tests.e2e.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_numbers = count()


def ops(platform: Platform, *words: str, **environment: str) -> tuple[int, str]:
    """`ops encryption-key` as a person types it: its exit code and what it printed."""
    run = platform.start(
        f"ops{next(_numbers)}", "-c", "from worker.cli import main; main()", "encryption-key", *words,
        OPS_USER="ann", **environment,
    )  # fmt: skip
    return run.wait(), run.text


def deploys(platform: Platform) -> str:
    """A deployment that needs a secret."""
    deployed = platform.deploy("--seconds", "0", infra=f"infra{next(_numbers)}", secrets={"TOKEN": "aws/token"})
    return platform.wait_ended(deployed)


def test_a_key_is_changed_while_deployments_go_on(platform: Platform) -> None:
    old = get_keyring().ids[0]
    with get_db_session() as session:
        DatabaseService(session).store_api_key(platform.user, "aws", "token", "tok-0123456789")
    added = {"OPS_ENCRYPTION_KEYS": f"new:{new_key()}"}
    promoted = added | {"OPS_ENCRYPTION_PRIMARY": "new"}
    first = platform.worker("w1")
    code, said = ops(platform, "promote", "new", **added)
    assert (code, "not held by w1" in said) == (5, True)

    second = platform.worker("w2", **added)
    platform.stop(first)
    code, said = ops(platform, "promote", "new", **added)
    assert (code, "OPS_ENCRYPTION_PRIMARY=new" in said) == (0, True), said

    third = platform.worker("w3", **promoted)
    code, said = ops(platform, "rotate", **promoted)
    assert (code, "sealed anew: 1" in said) == (0, True), said
    assert deploys(platform) == "success"  # whichever of the two runs it
    code, said = ops(platform, "retire", old, **promoted)
    assert (code, f"the key {old} still seals in" in said) == (5, True), said
    platform.stop(second)
    assert ops(platform, "retire", old, **promoted)[0] == 0
    assert deploys(platform) == "success"

    late = platform.worker("w4", wait=False)  # with the old key alone
    assert late.wait() == 3
    assert "was retired and seals nothing any more" in late.text
    assert third.is_alive
