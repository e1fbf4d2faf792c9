"""Make a virtual environment and install a locked set of packages into it, saying what it does.

Runs on whatever Python 3 a machine has, so that an old one is told so in one line.
"""

import os
import subprocess
import sys

MINIMUM = (3, 11)


def fail(message):
    sys.stderr.write("error: " + message + "\n")
    sys.exit(2)


def main(venv, requirements):
    if sys.version_info < MINIMUM:
        fail(
            "Python %d.%d is too old; install Python %d.%d or newer, or name one: make PYTHON=python3.12 ..."
            % (sys.version_info[0], sys.version_info[1], MINIMUM[0], MINIMUM[1])
        )
    try:
        import ensurepip  # noqa: F401
        import venv as _venv  # noqa: F401
    except ImportError:
        version = "%d.%d" % sys.version_info[:2]
        fail("this Python has no venv module; install it (on Debian: apt install python%s-venv)" % version)
    python = os.path.join(venv, "bin", "python")
    if not usable(python):
        say("making a virtual environment in " + venv)
        run([sys.executable, "-m", "venv", "--clear", venv], "the virtual environment cannot be made")
    say("installing the locked packages of " + requirements)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
    run(
        [*pip, "install", "--require-hashes", "--only-binary", ":all:", "-r", requirements],
        "the packages cannot be installed; is the package index reachable?",
    )
    run(
        [*pip, "install", "--no-deps", "--no-build-isolation", "--editable", "."],
        "the project cannot be installed",
    )


def usable(python):
    """False also for an environment that was moved or copied (its programs name its old folder), or whose Python is
    gone."""
    pip = os.path.join(os.path.dirname(python), "pip")
    try:
        done = subprocess.run([pip, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError:
        return False
    home = os.path.realpath(os.path.dirname(os.path.dirname(python)))
    return done.returncode == 0 and (" from " + home + os.sep) in os.fsdecode(done.stdout)


def run(command, failure):
    if subprocess.run(command).returncode != 0:
        fail(failure)


def say(text):
    sys.stdout.write("== " + text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
