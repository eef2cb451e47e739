"""Fetch what the tests run against and pip can't bring: Apache Kafka's jars, and a Chromium.

`make test` calls it before pytest. It does nothing, quickly, when both are there. What can't be had is said in one
line and left to the tests: those on Kafka then use a stand-in (see `tests/services/kafka.py`), those in a browser skip.
Under `CI=true` it is an error.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
POM = ROOT / "tests" / "services" / "pom.xml"
JARS = ROOT / ".cache" / "kafka"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    """Prepare both; the exit status is 1 when something is missing under CI=true."""
    problems = [problem for problem in (prepare_kafka(), prepare_chromium()) if problem]
    for problem in problems:
        print(f"prepare-tests: {problem}", file=sys.stderr)
    return 1 if problems and os.environ.get("CI") == "true" else 0


def prepare_kafka() -> str:
    """Copy the jars that the pom names to `.cache/kafka`; what stood in the way, or "" when they are there."""
    ready = JARS / ".ready"
    wanted = hashlib.sha256(POM.read_bytes()).hexdigest()
    if ready.exists() and ready.read_text() == wanted:
        return ""
    if not shutil.which("mvn") or not shutil.which("java"):
        return "Apache Kafka needs `mvn` and `java` (17 or later) on PATH; its tests will run against Tansu, a stand-in"
    shutil.rmtree(JARS, ignore_errors=True)
    print("prepare-tests: fetching Apache Kafka from Maven Central (about 45 MB, once)", flush=True)
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        return f"Maven could not fetch Apache Kafka:\n{done.stdout[-2000:]}"
    ready.write_text(wanted)
    return ""


def prepare_chromium() -> str:
    """Install Chromium with apt-get when there is none; what stood in the way, or "" when there is one."""
    if find_chromium():
        return ""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return "no Chromium on PATH, and only root can install it with apt-get; the browser tests will not run"
    print("prepare-tests: installing Chromium with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"],
    ):
        done = subprocess.run(
            command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        if done.returncode:
            return f"`{' '.join(command)}` failed:\n{done.stdout[-2000:]}"
    return "" if find_chromium() else "apt-get installed no Chromium; the browser tests will not run"


def find_chromium() -> str:
    """The path of a Chromium on PATH, or "" ."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), "")


if __name__ == "__main__":
    sys.exit(main())
