"""`ops serve`: metrics, health, pings and the status page by HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.output import out


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    host: Annotated[
        str, typer.Option(help="The address to listen on; elsewhere than on loopback /metrics needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
) -> None:
    """Serve /metrics, /healthz, /readyz, /ping/ID and the status page until stopped. Example: ops serve --port 8080"""
    from db.errors import SettingsError

    try:
        from worker import server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("aiohttp", "prometheus_client"):
            raise
        raise SettingsError(f"{error.name} is not installed", hint="pip install 'ai-manage-ops[serve]'") from None

    def ready(url: str) -> None:
        paths = {name: f"{url}{path}" for name, path in
                 (("page", "/"), ("metrics", "/metrics"), ("health", "/healthz"), ("ready", "/readyz"))}  # fmt: skip
        out.result({"url": url, **paths}, f"serving {url}   /   /metrics   /healthz   /readyz   /ping/ID; Ctrl-C stops")

    server.run(host, port, ready)
