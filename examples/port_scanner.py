"""A port scanner: a tree of fibers (the scan, one per host, one per port) under one timeout.

    python examples/port_scanner.py 1-1024 127.0.0.1 ::1

A port that does not answer costs its own fiber PATIENCE seconds and nobody else anything. A scan that is not
done after LIMIT seconds is cancelled as a whole, and what was found until then is printed.
"""

import sys

import fibers
from fibers import net

PATIENCE = 1.0
LIMIT = 30.0
AT_ONCE = 200  # connections in the making, per host: a tenth of what most machines allow a process to open


def probe(host: str, port: int, found: dict[int, str]) -> None:
    """Note the port if it is open, with the greeting that the service sends unasked, if it does."""
    try:
        with fibers.move_on_after(PATIENCE), net.connect((host, port)) as stream:
            found[port] = ""
            found[port] = stream.recv(80).decode("ascii", "replace").strip()
    except OSError:
        pass  # closed, or not reachable: not in the list


def scan(host: str, ports: range) -> dict[int, str]:
    found: dict[int, str] = {}
    with fibers.scope(limit=AT_ONCE) as probes:
        for port in ports:
            probes.spawn(probe, host, port, found)
    return found


def report(host: str, ports: range) -> None:
    for port, greeting in sorted(scan(host, ports).items()):
        print(f"{host}  {port:5}  open  {greeting}", flush=True)


def main(ports: range, hosts: list[str]) -> None:
    with fibers.move_on_after(LIMIT) as everything:
        for host in hosts:
            everything.spawn(report, host, ports)
    if everything.cancelled_caught:
        print(f"stopped after {LIMIT:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    low, _, high = sys.argv[1].partition("-")
    fibers.run(main, range(int(low), int(high or low) + 1), sys.argv[2:] or ["127.0.0.1"])
