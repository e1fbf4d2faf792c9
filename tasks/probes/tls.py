"""Is a certificate trusted, for this host, and for how long still?"""

from __future__ import annotations

import time

from db.probes import ProbePlan, Seen, TlsCheck
from db.states import CheckStatus
from tasks.probes.certificates import days_left
from tasks.probes.net import Down, Net, tls_context


async def look(plan: ProbePlan, net: Net) -> Seen:
    config: TlsCheck = plan.config
    start = time.monotonic()
    _, writer = await net.connect(config.host, config.port, tls_context(config.verify), config.server_name)
    try:
        seconds = time.monotonic() - start
        tls = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True)
        days = round(days_left(certificate), 1) if certificate else 0.0
        facts = {"certificate_days": days, "version": tls.version()}
    finally:
        writer.transport.abort()
    said = f"its certificate ends in {days:g} days"
    if days <= config.down_days:
        raise Down(said, seconds, facts)
    if days < config.degraded_days:
        return Seen(CheckStatus.DEGRADED, seconds, said, facts)
    return Seen(CheckStatus.UP, seconds, None, facts)
