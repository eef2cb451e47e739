"""`python -m bench`: every benchmark, one after another, each in a process of its own. `python -m bench.NAME`: one.

A benchmark is a module of this package with a `main`; the soak of `bench.engine` is left out, for it takes its time.
"""

import argparse
import importlib
import pkgutil
import subprocess
import sys

import bench

#: Benchmarks with more than one thing to measure, and one in a shorter form than by itself.
RUNS: dict[str, tuple[list[str], ...]] = {
    "engine": ([], ["--processes", "2"], ["--scaling"]),
    "redeemers": (["--rounds", "1000", "--kills", "50", "--store-kills", "2"],),
}


def names() -> list[str]:
    return [
        module.name
        for module in pkgutil.iter_modules(bench.__path__)
        if not module.ispkg and module.name != "__main__" and has_main(module.name)
    ]


def has_main(name: str) -> bool:
    return hasattr(importlib.import_module(f"bench.{name}"), "main")


if __name__ == "__main__":
    benchmarks = names()
    argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog=f"There are: {', '.join(benchmarks)}"
    ).parse_args()
    for name in benchmarks:
        for arguments in RUNS.get(name, ([],)):
            print(f"== bench.{' '.join([name, *arguments])}", flush=True)
            subprocess.run([sys.executable, "-m", f"bench.{name}", *arguments], check=True)
