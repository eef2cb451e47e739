"""The commands as they are installed: each starts, and none needs another's imports."""

import pkgutil
import subprocess
import sys

import server.commands
from server.cli import main

#: In one new process, where nothing of ours is imported yet. Each module is imported in a fork of it.
_SCRIPT = """
import importlib, importlib.metadata, os, sys
# What isn't ours, and takes the longest.
import click, msgspec, numpy, prometheus_client, redis.asyncio

faults = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        sys.exit()
    if os.waitpid(child, 0)[1]:
        faults.append(name)
[script] = importlib.metadata.entry_points(group="console_scripts", name="nearcast")
nearcast = script.load()
for name in nearcast.commands:
    nearcast([name, "--help"], prog_name="nearcast", standalone_mode=False)
sys.exit(f"not alone: {faults}" if faults else 0)
"""


def test_every_command_starts_and_every_module_of_them_is_imported_alone() -> None:
    """`nearcast COMMAND --help` of the installed script; a circular import shows when a module is the first."""
    modules = [each.name for each in pkgutil.iter_modules(server.commands.__path__, "server.commands.")]
    command_line = [sys.executable, "-c", _SCRIPT, "server.cli", *modules]
    said = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    for command in main.commands:
        assert f"Usage: nearcast {command} " in said.stdout
