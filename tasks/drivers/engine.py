"""A Docker engine: how it is reached, which image is run, and what its refusals say."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tasks.drivers.events import say
from tasks.drivers.tunnel import Closed, tunnel

#: For one request; pulling an image and stopping a container take what they take.
ENGINE_SECONDS = 60


class Refused(Exception):
    """It has failed, before anything was switched; the message is one line for a person."""


def find_image(engine: Any, plan: dict[str, Any]) -> str:
    """The id of the image of a plan, pulled where it must be. Raises Refused where there is none."""
    from docker.errors import ImageNotFound, NotFound

    name, digest, pull = plan["image"], plan["digest"], plan["settings"]["pull"]
    if digest is not None and "@" not in name:
        name = f"{name.rpartition(':')[0]}@{digest}"
    found = None if pull == "always" else _local(engine, name, digest)
    if found is None:
        if pull == "never":
            raise Refused("the image is not there, and is not to be pulled")
        say(f"pulling {name}")
        password = plan["secrets"].get("registry_password")
        login = {"username": plan["settings"]["registry_user"], "password": password} if password else None
        try:
            engine.api.pull(name, auth_config=login)
            found = engine.images.get(name)
        except (ImageNotFound, NotFound):
            raise Refused("there is no such image") from None
    say(f"image {name}: {found.id}")
    return str(found.id)


def _local(engine: Any, name: str, digest: str | None) -> Any:
    """An image that is there already: by the digest of its manifest, or its own id, which it has where it was built
    and never pushed."""
    from docker.errors import ImageNotFound

    with contextlib.suppress(ImageNotFound):
        return engine.images.get(name)
    if digest is not None:
        with contextlib.suppress(ImageNotFound):
            return engine.images.get(digest)
    return None


def gone() -> tuple[type[Exception], ...]:
    """What an engine raises for what is not there, or not any more."""
    from docker.errors import NotFound

    return (NotFound,)


def reason(error: Exception) -> str:
    """Why, in one line, without an address."""
    from docker.errors import APIError

    if isinstance(error, Closed):
        return str(error)
    if isinstance(error, APIError):
        text = str(error.explanation or error.response.reason if error.response is not None else "")
        return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:300] or "an error"
    return f"no connection ({type(error).__name__})"


@contextmanager
def connected(settings: dict[str, Any], secrets: dict[str, str]) -> Iterator[Any]:
    """The engine. Certificates are files in memory only, gone with this process."""
    import docker

    host = settings["host"] or "unix:///var/run/docker.sock"
    with (
        _certificates(settings, secrets) as tls,
        tunnel(host) if host.startswith("ssh://") else nullcontext(host) as url,
    ):
        engine = docker.DockerClient(base_url=url, tls=tls, timeout=ENGINE_SECONDS, version="auto")
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def _certificates(settings: dict[str, Any], secrets: dict[str, str]) -> Iterator[Any]:
    """What the SDK takes for TLS; False: none of it."""
    from docker.tls import TLSConfig

    if settings["tls"] is None:
        yield False
        return
    with contextlib.ExitStack() as files:
        paths = {}
        for name in ("ca", "cert", "key"):
            file = os.memfd_create(name)
            files.callback(os.close, file)
            os.write(file, secrets[f"tls.{name}"].encode())
            paths[name] = f"/proc/self/fd/{file}"
        yield TLSConfig(client_cert=(paths["cert"], paths["key"]), ca_cert=paths["ca"], verify=True)
