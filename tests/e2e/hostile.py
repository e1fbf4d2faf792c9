"""Messages that nobody of ours has sent: forged, replayed, malformed. Made from a seed, so that a failure repeats."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

RUN = "tasks.deployments.run"
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: A signature as it lies in a callback: enqueue a deployment's task with arguments of somebody else's choice.
SIGNATURE = {"task": RUN, "args": [], "kwargs": {"deployment_id": 1}, "options": {}, "subtask_type": None,
             "immutable": True}  # fmt: skip
WRONG: list[Any] = [None, 0, -1, 1e300, True, "", "x", "\x00", "ü" * 100, [], [[]], {}, {"a": {"b": []}}]


def message(
    task: Any, job: Any, args: Any = (), kwargs: Any = None, embed: Any = None, queue: str = "deployments", **more: Any
) -> dict[str, Any]:
    """A message as Celery would send it, with whatever one wants in it."""
    headers = {
        "lang": "py", "task": task, "id": job, "root_id": job, "parent_id": None, "group": None, "eta": None,
        "expires": None, "retries": 0, "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}",
        "origin": "gen1@nowhere", "shadow": None, "ignore_result": True, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    body = json.dumps([list(args), kwargs or {}, embed or EMBED]).encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers | more,
        "properties": {
            "correlation_id": job, "reply_to": str(uuid4()), "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": queue}, "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }  # fmt: skip


def forged(dice: random.Random, jobs: list[str]) -> dict[str, Any]:
    """A well-formed message: an id that exists or not, and headers that ask for harm."""
    job = dice.choice([*jobs, str(uuid4())])
    task = dice.choice([RUN, RUN, "tasks.alerts.evaluate", "celery.starmap", "celery.chord_unlock", "celery.map"])
    starmap = {"task": SIGNATURE, "it": [[1]] * 3}
    more = dice.choice(
        [
            {},
            {"timelimit": [0.001, 0.001]},
            {"eta": "2099-01-01T00:00:00+00:00"},
            {"expires": "2001-01-01T00:00:00+00:00"},
            {"retries": 10**9, "shadow": "something else"},
            {"stamped_headers": ["a"], "stamps": {"a": ["b"]}},
            {"compression": "application/x-gzip"},
            {"group": str(uuid4()), "ignore_result": False, "replaced_task_nesting": 10**6},
        ]
    )
    embed = dice.choice(
        [
            EMBED,
            EMBED | {"callbacks": [SIGNATURE], "errbacks": [SIGNATURE]},
            EMBED | {"chain": [SIGNATURE], "chord": SIGNATURE},
        ]
    )
    kwargs = dice.choice([{}, starmap, {"deployment_id": 1}])
    return message(task, job, dice.choice([[], [1], [[1]]]), kwargs, embed, **more)


def malformed(dice: random.Random, jobs: list[str]) -> Any:
    """A message of which some part is missing or not what it should be."""
    found = message(dice.choice([RUN, "tasks.alerts.evaluate", "no.such.task"]), dice.choice(jobs))
    place: Any = dice.choice([found, found["headers"], found["properties"], found["properties"]["delivery_info"]])
    name = dice.choice(sorted(place))
    if dice.random() < 0.5:
        del place[name]
    else:
        place[name] = dice.choice(WRONG)
    return found


def junk(dice: random.Random) -> bytes:
    """What is no message at all."""
    return dice.choice(
        [
            b"", b"x", b"{", b"null", b"[]", b"17", b'"text"', b"\xff\xfe\x00", b"[" * 5000,
            json.dumps({"body": "%%%", "headers": {}, "properties": {}}).encode(),
            gzip.compress(b"0" * 10_000),
        ]
    )  # fmt: skip


def flood(seed: int, count: int, jobs: list[str]) -> Iterator[bytes]:
    """So many messages of all kinds, one of them huge."""
    dice = random.Random(seed)
    for _ in range(count - 1):
        kind = dice.randrange(5)
        if kind == 0:
            yield junk(dice)
        else:
            yield json.dumps(malformed(dice, jobs) if kind == 1 else forged(dice, jobs)).encode()
    yield json.dumps(message(RUN, jobs[0], ["x" * 20_000_000])).encode()


def bomb() -> bytes:
    """A small message that unpacks to half a gigabyte."""
    found = message(RUN, str(uuid4()), compression="application/x-gzip")
    found["body"] = base64.b64encode(gzip.compress(b"0" * 500_000_000)).decode()
    return json.dumps(found).encode()
