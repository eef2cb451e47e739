"""`python -m bench`: every benchmark, one after another, each in a process of its own. `python -m bench.NAME`: one."""

import argparse
import pkgutil
import subprocess
import sys

import bench

if __name__ == "__main__":
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_")]
    argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog=f"There are: {', '.join(names)}"
    ).parse_args()
    for name in names:
        print(f"== bench.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"bench.{name}"], check=True)
