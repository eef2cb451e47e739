"""The README's six commands, run as they stand there."""

import asyncio
import json
import re
import sys
from pathlib import Path

from tests.system.process import Server

ROOT = Path(__file__).parents[2]


async def test_six_commands(tmp_path: Path) -> None:
    """A new user who copies the commands gets a decision, a coupon and a redemption."""
    readme = (ROOT / "README.md").read_text()
    (script,) = re.findall(r"<!-- tests/system/test_readme.py runs these -->\n```sh\n(.*?)```", readme, re.DOTALL)
    server = Server(tmp_path)
    # Ports that are free here; the data directory stays out of the source tree, and nothing is left running.
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{server.api_port}")
    script = script.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p); wait' EXIT\n{script}\n"
    for folder in ("docs",):
        (tmp_path / folder).symlink_to(ROOT / folder)
    ours = ("NEARCAST_DATA_DIR", "NEARCAST_API_PORT", "NEARCAST_GATEWAY_PORT")
    environment = {n: v for n, v in server.environment.items() if n in ours or not n.startswith("NEARCAST_")}
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, cwd=tmp_path, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    (decision,) = json.loads((tmp_path / "decisions.json").read_text())["decisions"]
    assert (decision["outcome"], decision["promotion"], decision["sku"]) == ("offer", "cart-nearby", "4711")
    code = json.loads((tmp_path / "coupon.json").read_text())["code"]
    assert re.fullmatch(r"[0-9A-Z]{20}", code)
    assert '"redeemed"' in out.decode()
    assert (tmp_path / "data" / "secrets.json").stat().st_mode & 0o777 == 0o600
    for secret in json.loads((tmp_path / "data" / "secrets.json").read_text())["api_keys"].values():
        assert secret not in out.decode() + err.decode()
