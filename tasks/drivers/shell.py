"""Scripts for a host's shell: what varies is quoted, and none of it is on a command line there.

A script goes to ``/bin/sh -s`` on stdin, so neither the login shell nor anybody who lists processes sees values of the
environment. It is one compound command: the shell has read all of it before it starts, and goes on with it when the
connection is cut, which is why whoever comes next waits for the step's lock.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What scripts of ours exit with; an application's own commands may as well, so it counts where none of them ran.
BUSY, FENCED, LACKS = 75, 76, 69
#: A host is let go of after so many beats that did not come; a connection is cut after three.
MISSED_BEATS = 4
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:@~-]*-[0-9]+-[0-9]+")


def is_release(name: str) -> bool:
    """True for a name that this platform gives: VERSION-DEPLOYMENT-FENCE."""
    return _RELEASE.fullmatch(name) is not None


def release_name(version: str, deployment: str, fence: str) -> str:
    return f"{version.replace('/', '~')}-{deployment}-{fence}"


@dataclass(frozen=True)
class Scripts:
    """The scripts for one application on one host."""

    root: str
    lock: str
    lock_key: str
    fence: int
    seconds: float
    #: Of a driver that beats every few seconds: then it, or its machine, or the way to it is gone.
    silence: float

    @classmethod
    def of(cls, plan: dict[str, Any]) -> Scripts:
        settings, environment = plan["settings"], plan["environment"]
        root = f"{settings['base'].rstrip('/')}/{environment['OPS_APPLICATION']}"
        key = f"{environment['OPS_INFRASTRUCTURE']}+{environment['OPS_APPLICATION']}"  # both are names without slashes
        return cls(
            root, settings["lock"] or f"{root}/.ops/lock", key,
            int(environment["OPS_FENCE"]), float(settings["lock_seconds"]),
            MISSED_BEATS * float(settings["keepalive_seconds"]),
        )  # fmt: skip

    @property
    def _fence_file(self) -> str:
        return shlex.quote(f"{self.root}/.ops/fence-{self.lock_key}")

    @property
    def _running(self) -> str:
        return shlex.quote(f"{self.root}/.ops/running")

    @property
    def _owner(self) -> tuple[str, str]:
        """The file that says who has the host, and what is in it while this deployment has."""
        return shlex.quote(f"{self.lock}.owner"), shlex.quote(f"{self.lock_key} {self.fence}")

    def hold(self) -> str:
        """Hold the host until stdin ends, or is silent for too long: a machine that is gone ends no connection. Says
        ``ready``; exits with BUSY, FENCED or LACKS."""
        lock, fence = shlex.quote(self.lock), self._fence_file
        owner, me = self._owner
        return f"""{{
set -eu
for each in flock tar timeout; do
  command -v $each >/dev/null || {{ echo "$each is missing" >&2; exit {LACKS}; }}
done
mkdir -p {shlex.quote(self.root)}/releases {shlex.quote(self.root)}/.ops
exec 8>>{lock} 9>>{lock}.step
flock -w {self.seconds:g} 8 || exit {BUSY}
flock -w {self.seconds:g} 9 || exit {BUSY}
last=$(cat {fence} 2>/dev/null || echo 0)
case $last in ''|*[!0-9]*) last=0 ;; esac
[ "$last" -le {self.fence} ] || {{ echo "$last" >&2; exit {FENCED}; }}
echo {self.fence} >{fence}.new
mv -f {fence}.new {fence}
echo {me} >{owner}.new
mv -f {owner}.new {owner}
exec 9>&-
echo ready
while [ -n "$(timeout {self.silence:g} head -n 1)" ]; do :; done
exit 0
}}
"""

    def step(self, body: str) -> str:
        """Something that changes the host: alone, and only while nobody else has come."""
        owner, me = self._owner
        return f"""{{
set -eu
cd {shlex.quote(self.root)}
exec 9>>{shlex.quote(self.lock)}.step
flock -w {self.seconds:g} 9 || {{ echo 'another step is still running here' >&2; exit {BUSY}; }}
[ "$(cat {owner})" = {me} ] || {{ echo 'another deployment has this host by now' >&2; exit {FENCED}; }}
{body}
exit 0
}} </dev/null
"""

    def command(self, folder: str, argv: Sequence[str], environment: Mapping[str, str], seconds: int) -> str:
        """An application's own command; what it starts in the background does not keep the lock. Its process group is
        written down, for :meth:`end`."""
        exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items()))
        words = " ".join(map(shlex.quote, argv))
        # It becomes the command, so the number it writes down is that of the group that `timeout` makes.
        noted = f'/bin/sh -c \'echo $$ >"$0"; exec "$@"\' {self._running}'
        return self.step(
            f"""cd {shlex.quote(folder)}
{exports}
code=0
{noted} timeout -k 5 {seconds} {words} 9>&- || code=$?
rm -f {self._running}
exit $code"""
        )

    def end(self) -> str:
        """End the command that runs, while its own session listens to nobody: TERM to its process group, KILL after
        two seconds. Exits with BUSY where it still runs then."""
        return f"""{{
set -u
exec 9>>{shlex.quote(self.lock)}.step
told=
for each in 1 2 3 4 5; do
  group=$(cat {self._running} 2>/dev/null)
  [ -n "$told" ] || [ -z "$group" ] || {{ kill -s TERM -- "-$group" 2>/dev/null; told=yes; }}
  flock -w 0.4 9 && exit 0
done
[ -z "$group" ] || kill -s KILL -- "-$group" 2>/dev/null
flock -w 1 9 || {{ echo 'it still runs' >&2; exit {BUSY}; }}
exit 0
}} </dev/null
"""

    def look(self, deployment: str) -> str:
        """Says ``current NAME``, and the name and ``.ops.json`` of what this deployment may have made before."""
        return self.step(
            f"""current=$(readlink current || true)
echo "current ${{current#releases/}}"
for each in releases/*-{int(deployment)}-*; do
  [ -f "$each/.ops.json" ] && printf 'release %s %s\\n' "${{each#releases/}}" "$(head -n 1 "$each/.ops.json")"
done"""
        )

    def inbox(self) -> str:
        """Make a folder for an upload, closed to others but for whoever knows the name of what is in it: what sudo
        becomes must read that. Says the folder; those of attempts that were killed go."""
        mine = shlex.quote(f"ops-upload-{self.lock_key}")
        return f"""{{
set -eu
cd "${{TMPDIR:-/tmp}}"
rm -rf -- {mine}-?????????? || true
made=$(mktemp -d -p "$PWD" {mine}-XXXXXXXXXX)
chmod 711 "$made"
echo "$made"
exit 0
}} </dev/null
"""

    def unpack(self, name: str, about: str, archive: str | None) -> str:
        """Make the folder of a new release, which is not one yet: others of this deployment that never were go."""
        new, deployment = shlex.quote(f"releases/.new-{name}"), name.split("-")[-2]
        lines = [f"rm -rf -- releases/.new-*-{deployment}-*", f"mkdir -- {new}"]
        if archive is not None:
            free = "df -Pk . | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4"  # tar itself does not say that the disk is full
            unpack = f"tar -C {new} -xf {shlex.quote(archive)} --no-same-owner"
            lines.append(f'{unpack} || {{ echo "($({free}) kB are free there)" >&2; exit 1; }}')
        lines.append(f"printf '%s\\n' {shlex.quote(about)} >{new}/.ops.json")
        return self.step("\n".join(lines))

    def finish(self, name: str) -> str:
        """What was prepared becomes a release."""
        return self.step(f"mv -T -- {shlex.quote(f'releases/.new-{name}')} {shlex.quote(f'releases/{name}')}")

    def discard(self, name: str) -> str:
        return self.step(f"rm -rf -- {shlex.quote(f'releases/.new-{name}')}")

    def switch(self, name: str) -> str:
        """Point ``current`` to a release, in one step; says what it was before, also when it is done again."""
        return self.step(
            f"""current=$(readlink current || true)
current=${{current#releases/}}
if [ "$current" = {shlex.quote(name)} ]; then
  current=$(cat releases/{shlex.quote(name)}/.ops-previous 2>/dev/null || true)
else
  printf '%s' "$current" >releases/{shlex.quote(name)}/.ops-previous
  {self._point(name)}
fi
echo "previous $current\""""
        )

    def back(self, name: str | None) -> str:
        """Point ``current`` back, or to nothing; says the ``.ops.json`` of what it points to."""
        if name is None:
            return self.step("rm -f current\necho gone")
        found = shlex.quote(f"releases/{name}")
        missing = f"[ -d {found} ] || {{ echo 'that release is not there any more' >&2; exit 1; }}"
        return self.step(f"{missing}\n{self._point(name)}\nhead -n 1 {found}/.ops.json || true")

    def _point(self, name: str) -> str:
        link = f".ops/current-{self.fence}"
        return f"ln -sfn {shlex.quote(f'releases/{name}')} {link} && mv -fT {link} current"

    def list_(self) -> str:
        """The releases, the newest first."""
        return self.step("ls -1t releases")

    def remove(self, names: Sequence[str]) -> str:
        return self.step("rm -rf -- " + " ".join(shlex.quote(f"releases/{name}") for name in names))
