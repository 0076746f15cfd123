"""A service tested on a simulated network: `python examples/simulation.py` runs 300 seeds, then once more with a bug.

Clients deposit money in a bank. Connections break, the bank restarts, answers get lost, so they repeat a deposit under
the same key until it is confirmed, and the bank counts each key once.
"""

import sys

import fibers
from fibers import net
from fibers.testing import Faults, Simulation, simulate


class Bank:
    """The service. What stands in `bugs` is done wrong on purpose."""

    def __init__(self, bugs: tuple[str, ...] = ()) -> None:
        self.bugs = bugs
        self.lock = fibers.Lock()
        self.balance = 0
        self.journal: list[bytes] = []
        self.sessions: set[net.Stream] = set()

    def serve(self) -> None:
        while True:
            try:
                net.serve(self.session, ("", 80), on_error=lambda *_: None)
            except OSError:
                fibers.sleep(0.1)

    def session(self, stream: net.Stream) -> None:
        self.sessions.add(stream)
        try:
            while line := stream.recv_until(b"\n"):
                key, amount = line.split()
                stream.sendall(b"%d\n" % self.deposit(key, int(amount)))
        except fibers.IncompleteRead:
            self.sessions.discard(stream)
        finally:
            if "leak on reset" not in self.bugs:
                self.sessions.discard(stream)

    def deposit(self, key: bytes, amount: int) -> int:
        with fibers.Lock() if "lost update" in self.bugs else self.lock:
            if key not in self.journal:
                balance = self.balance
                fibers.to_thread(self.journal.append, key)
                self.balance = balance + amount
        return self.balance


def deposit(key: bytes, amount: int, patience: float | None) -> None:
    """Repeat until it is confirmed."""
    while True:
        try:
            with fibers.timeout(patience), net.connect(("bank", 80)) as stream:
                stream.sendall(b"%s %d\n" % (key, amount))
                stream.recv_until(b"\n")
                return
        except (OSError, EOFError):
            fibers.sleep(0.1)


def main(sim: Simulation, *bugs: str) -> None:
    """Nine deposits by three clients, while the bank and its network have their troubles."""
    bank = Bank(bugs)
    sim.host("bank").spawn(bank.serve)
    patience = None if "missing timeout" in bugs else 2
    clients = [sim.host(f"client{n % 3}").spawn(deposit, b"key%d" % n, 10, patience) for n in range(9)]
    for trouble in (sim.partition, sim.kill, sim.crash):
        fibers.sleep(sim.random.uniform(0, 0.1))
        trouble("bank")
        fibers.sleep(sim.random.uniform(0, 3))
        sim.heal()
        if not sim.host("bank").up:
            sim.restart("bank")
    for client in clients:
        assert client.join(timeout=60), f"{client.name} has waited for a minute"
    fibers.sleep(1)
    assert bank.balance == 90, f"the balance is {bank.balance}, deposited were 90"
    assert not bank.sessions, f"{len(bank.sessions)} sessions are left"


if __name__ == "__main__":
    print(simulate.search(main, seeds=range(300), faults=Faults.all()))
    bug = sys.argv[1] if len(sys.argv) > 1 else "lost update"
    print(simulate.search(lambda sim: main(sim, bug), faults=Faults.all()))
