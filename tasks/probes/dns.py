"""Does a name have the records that it should?"""

from __future__ import annotations

import contextlib
import time
from functools import lru_cache
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from db.probes import DnsCheck, ProbePlan, Seen
from tasks.probes.net import Down, Net, Unable
from tasks.probes.texts import found_slow, quoted

#: How often a question is asked within a run's time.
TRIES = 3
#: Records shown in the facts.
MOST_RECORDS = 20


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: DnsCheck = plan.config
    server, port = await _server(config, net)
    start = time.monotonic()
    question = dns.message.make_query(config.name, config.record)
    question.flags |= dns.flags.RD
    answer = await _ask(question, server, port, 0.9 * plan.timeout_seconds / TRIES, ours=config.resolver is None)
    seconds = time.monotonic() - start
    if answer.rcode() == dns.rcode.NXDOMAIN:
        raise Down("there is no such name", seconds)
    if answer.rcode() != dns.rcode.NOERROR:
        raise Down(f"the resolver answers {dns.rcode.to_text(answer.rcode())}", seconds)
    values = sorted(_values(answer, config.record))
    facts = {"records": values[:MOST_RECORDS]}
    if not values:
        raise Down(f"it has no {config.record} record", seconds)
    for wanted in config.expect:
        if _plain(wanted) not in values:
            raise Down(f"among its {config.record} records is no {quoted(wanted)}", seconds, facts)
    return found_slow(seconds, config.degraded_seconds, facts)


async def _server(config: DnsCheck, net: Net) -> tuple[str, int]:
    """Whom to ask. The system's own resolver is ours to ask, wherever it is; another one goes by the rules."""
    if config.resolver is None:
        return _system_resolver(), 53
    (info, *_) = await net.resolve(config.resolver, config.port)
    return str(info[4][0]), config.port


@lru_cache(maxsize=1)
def _system_resolver() -> str:
    try:
        return str(dns.resolver.Resolver().nameservers[0])
    except (dns.resolver.NoResolverConfiguration, IndexError):
        raise Unable("this host has no resolver; name one with resolver=") from None


async def _ask(question: dns.message.QueryMessage, server: str, port: int, pause: float, *, ours: bool) -> Any:
    """By UDP, and by TCP where the answer is too long for that; a datagram that is lost is sent again."""
    try:
        for _ in range(TRIES):
            with contextlib.suppress(dns.exception.Timeout):
                answer, _used_tcp = await dns.asyncquery.udp_with_fallback(
                    question, server, pause, port=port, ignore_unexpected=True, ignore_errors=True
                )
                return answer
    except (dns.exception.DNSException, EOFError):
        said = "gives no answer that can be read"
    else:
        said = "does not answer"
    if ours:
        raise Unable(f"the resolver of this host {said}")
    raise Down(f"the resolver {said}")


def _values(answer: Any, record: str) -> set[str]:
    wanted = dns.rdatatype.from_text(record)
    return {_plain(_text(data)) for found in answer.answer if found.rdtype == wanted for data in found}


def _text(data: Any) -> str:
    if data.rdtype == dns.rdatatype.TXT:
        return b"".join(data.strings).decode("utf-8", "replace")
    return str(data.to_text())


def _plain(value: str) -> str:
    """As it is compared: names without the last dot, whatever their case."""
    return value.rstrip(".").lower()
