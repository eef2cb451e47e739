"""The system's Chromium, for tests of pages."""

import os
import shutil

import pytest

#: It starts with nothing that asks the network.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Path of the browser. Without one the test is skipped; under CI that is a failure."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    if os.environ.get("CI") == "true":
        pytest.fail("CI must have Chromium: scripts/prepare_tests.py installs it")
    pytest.skip("no Chromium on this machine")
