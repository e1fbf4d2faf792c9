"""What a version is: content with a digest, named by an application's ``artifact`` with the version filled in.

======================================  ====================================================  =====================
``artifact``                            content                                               digest
======================================  ====================================================  =====================
``releases/{version}``                  a file or folder where the worker runs                of the tree
``https://host/web-{version}.tar.gz``   what is there                                         said with the request
``image:registry.example/web``          an image; the version is its tag or ``sha256:...``    of its manifest
``git:https://host/web.git``            a commit; the version is a tag, branch or commit      the commit
======================================  ====================================================  =====================

Pure: nothing here looks anything up (``tasks.releases`` does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from db.errors import InvalidInput
from db.fields import http_url, printable

#: A content's digest: of bytes, of a tree or an image, or a commit.
DIGEST = r"^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40}([0-9a-f]{24})?)$"
PLACE = "{version}"
_IMAGE = r"[a-z0-9][a-z0-9._-]*(:[0-9]{1,5})?(/[a-z0-9][a-z0-9._-]*){0,20}"
_GIT = r"(https?|ssh)://[A-Za-z0-9@.:_~/%+-]+|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[A-Za-z0-9._~/+-]+|/[^\x00-\x1f]*"
_COMMIT = r"[0-9a-f]{40}([0-9a-f]{24})?"


class Kind(StrEnum):
    PATH = "path"
    URL = "url"
    IMAGE = "image"
    GIT = "git"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a version's content is. ``digest``: what it must be, where the reference itself says so."""

    kind: Kind
    location: str
    digest: str | None = None


def kind_of(artifact: str) -> Kind:
    if artifact.startswith("image:"):
        return Kind.IMAGE
    if artifact.startswith("git:"):
        return Kind.GIT
    return Kind.URL if artifact.startswith(("http://", "https://")) else Kind.PATH


def reference(artifact: str, version: str) -> Reference:
    """The content of a version. Both have been checked when they were saved; raises InvalidInput where they do not fit
    together."""
    kind = kind_of(artifact)
    if kind is Kind.GIT:
        return _commit(artifact.removeprefix("git:"), version)
    if kind is Kind.IMAGE:
        return _image(artifact.removeprefix("image:"), version)
    return Reference(kind, artifact.replace(PLACE, version))


def _image(name: str, version: str) -> Reference:
    if re.fullmatch(r"sha256:[0-9a-f]{64}", version):
        return Reference(Kind.IMAGE, f"{name}@{version}", version)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", version):
        raise InvalidInput("version: an image's is its tag, or sha256: and its digest")
    return Reference(Kind.IMAGE, f"{name}:{version}")


def _commit(location: str, version: str) -> Reference:
    if re.fullmatch(_COMMIT, version):
        return Reference(Kind.GIT, location, f"git:{version}")
    # What git takes for a name of a branch or tag, and of that only what a version may be.
    if version.startswith("-") or ":" in version or "//" in version or version.endswith(("/", ".", ".lock")):
        raise InvalidInput("version: git has no such name of a tag, branch or commit")
    return Reference(Kind.GIT, location)


def _artifact(value: str) -> str:
    kind = kind_of(value)
    filled = value.replace(PLACE, "v1")
    if "{" in filled or "}" in filled:
        raise ValueError(f"{PLACE} is all that is filled in")
    if kind is Kind.URL:
        http_url(filled)
    elif kind is Kind.IMAGE and not re.fullmatch(_IMAGE, value.removeprefix("image:")):
        raise ValueError("an image is named image:[HOST[:PORT]/]NAME, without a tag: the version is its tag")
    elif kind is Kind.GIT and not re.fullmatch(_GIT, value.removeprefix("git:")):
        raise ValueError("a repository is git: and an https or ssh address, or an absolute path, without {version}")
    elif kind is Kind.PATH and ".." in filled.split("/"):
        raise ValueError("no part may be '..'")
    elif kind is Kind.PATH and (filled.startswith("-") or filled != filled.strip()):
        raise ValueError("a path is needed, without spaces around it and no option")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch(DIGEST, value):
        raise ValueError("a digest is sha256: and 64 hexadecimal digits, or git: and a commit's 40")
    return value


#: Where an application's content is.
Artifact = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(printable), AfterValidator(_artifact)]
Digest = Annotated[str, AfterValidator(_digest)]
