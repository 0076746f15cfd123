"""The command line: `python -m fibers SUBCOMMAND`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import Any

from fibers import driver


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fibers", description="Facts about fibers on this machine.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    info = subcommands.add_parser(
        "info",
        help="the driver that run() takes here, and why not the others",
        description="Print the driver that run() takes here, what each driver has, and why it cannot be had. "
        "The exit status is 1 if there is none.",
    )
    info.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(arguments)
    found = driver.report()
    print(json.dumps(found, indent=1) if args.json else "\n".join(describe(found)))
    return 0 if found["driver"] else 1


def describe(found: dict[str, Any]) -> list[str]:
    """Write a report as lines for a person."""
    how = "chosen by $FIBERS_DRIVER" if found["chosen_by"] != "order" else "the first that can be had"
    rows = {
        "fibers": version(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{found['kernel']} {platform.machine()}",
        "driver": f"{found['driver']} ({how})" if found["driver"] else f"none ({how})",
    }
    rows |= {name: words(facts) for name, facts in found["drivers"].items()}
    return [f"{name:<8} {text}" for name, text in rows.items()]


def version() -> str:
    """Return the version that is installed."""
    try:
        return importlib.metadata.version("fibers-io")
    except importlib.metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def words(facts: dict[str, Any]) -> str:
    """Describe a driver in a line."""
    if not facts["available"]:
        return str(facts["reason"])
    said = ["available"]
    if "setup_flags" in facts:
        said.append(" ".join(facts["setup_flags"]) or "no set-up flags")
        said.append(f"sq {facts['sq_entries']}, cq {facts['cq_entries']}")
        said.append(f"{'a' if facts['registered_fd'] else 'no'} registered ring fd")
        said.append(f"{facts['operations']} operations")
    if "threads" in facts:
        said.append(f"up to {facts['threads']} threads for files")
    said.append(f"{facts['buffers']} buffers of {facts['buffer_size']:,} bytes")
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
