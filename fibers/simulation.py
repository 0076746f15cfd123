"""A simulated network, clock and chance for a program's own blocking code: simulate(main, seed=n).

Rule 1: a run depends on its seed, its faults and its program alone; the same seed gives the same trace, byte for byte.
Rule 2: main decides how long a simulation lasts: when it returns, what still runs on hosts is cancelled and awaited.
Rule 3: what any host's code raises fails the simulation, as do sockets left open, a deadlock, and a run without an end.
Rule 4: a crash ends what its host sends before it cancels its fibers: their cleanup reaches nobody.

What is controlled beside the network, and what is refused, stands in determinism.py; files are real. Sets of strings
are iterated in the same order only under the same PYTHONHASHSEED.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.determinism import controlled
from fibers.driver import binding
from fibers.errors import SimulationError
from fibers.faults import Faults
from fibers.runtime import run
from fibers.scope import scope
from fibers.world import HERE, World

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from fibers.fiber import Fiber
    from fibers.scope import Scope

    Job = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

__all__ = ["Faults", "Host", "Search", "Simulation", "simulate"]

T = TypeVar("T")
lib = binding.lib

LAST = 15  # events that the report of a failure shows
REPORT_EVERY = 2.0  # seconds of real time between two signs of life of a search

real_time = time.monotonic


class Host:
    """A simulated machine, made by Simulation.host(): what is spawned on it listens and connects at its address."""

    def __init__(self, simulation: Simulation, name: str, number: int) -> None:
        """Belong to a simulation."""
        self._simulation = simulation
        self._number = number
        self._jobs: dict[Fiber[Any], Job] = {}
        self._stopped: list[Job] = []
        self.name = name
        self.address = World.address(number)
        self.up = True

    def spawn(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Fiber[T]:
        """Run fn(*args, **kwargs) as a fiber of this host; it is cancelled when main returns, and by a crash.

        Join it, or take its result, to wait for its end. What it raises fails the simulation. RuntimeError while the
        host is down.
        """
        if not self.up:
            raise RuntimeError(f"can't spawn on {self.name}: it has crashed; restart() it first")
        token = HERE.set(self.name)
        try:
            fiber = self._simulation._hosts_scope().daemon(fn, *args, **kwargs)
        finally:
            HERE.reset(token)
        fiber.name = f"{self.name}: {getattr(fn, '__name__', type(fn).__name__)}"
        self._jobs[fiber] = (fn, args, kwargs)
        fiber._watch(self._ended)
        return fiber

    def _ended(self, fiber: Fiber[Any]) -> None:
        """Forget a fiber."""
        self._jobs.pop(fiber, None)

    def _stop(self, reason: str) -> None:
        """Cancel what runs, and remember it for a restart."""
        self.up = False
        self._stopped = list(self._jobs.values())
        for fiber in list(self._jobs):
            fiber.cancel(reason)

    def __repr__(self) -> str:
        """Tell the name, the address and how much runs."""
        state = f"{len(self._jobs)} fibers" if self.up else "down"
        return f"<Host {self.name} {self.address} {state}>"


class Simulation:
    """One simulated run: what main gets, and what simulate() returns.

    `seed` and `faults` are its own; `now` is its time in seconds, and afterwards how long it took. `value` is what main
    returned, `trace` the events as text, a line each, `fired` how often each kind of fault struck.
    """

    def __init__(
        self, main: Callable[[Simulation], object], seed: int, faults: Faults, limit: float, steps: int
    ) -> None:
        """Prepare."""
        self._main = main
        self._world = World(seed, faults, limit, steps)
        self._scope: Scope | None = None
        self._hosts = {"main": Host(self, "main", 0)}
        self.seed = seed
        self.faults = faults
        self.value: Any = None

    # What main and the hosts use

    def host(self, name: str) -> Host:
        """Return the host of this name, made when first named; "main" is the one that main itself runs on."""
        found = self._hosts.get(name)
        if found is None:
            found = self._hosts[name] = Host(self, name, self._world.add_host(name))
        return found

    def partition(self, host: Host | str, *others: Host | str) -> None:
        """Cut the links between a host and others, or all others: what is sent is held until heal().

        A connection whose data can't get through for 924 seconds ends with ETIMEDOUT, as on Linux.
        """
        self._link(host, others, up=False)

    def heal(self, host: Host | str | None = None, *others: Host | str) -> None:
        """Mend all links, those of a host, or those between a host and others."""
        for one in self._hosts.values() if host is None else [host]:
            self._link(one, others, up=True)

    def _link(self, host: Host | str, others: tuple[Host | str, ...], *, up: bool) -> None:
        """Cut or mend."""
        one = self._host(host)
        for other in [self._host(each) for each in others] or list(self._hosts.values()):
            if other is not one:
                lib.fb_sim_link(self._world.running(), one._number, other._number, up)

    def crash(self, host: Host | str) -> None:
        """Cut the power of a host: nobody is told, its connections are dead, its fibers are cancelled.

        Their cleanup runs, but reaches nobody. Peers learn of it by a time limit of their own, or by a reset when they
        send to the restarted host. No effect on a host that is down.
        """
        victim = self._host(host)
        if victim.up:
            lib.fb_sim_power(self._world.running(), victim._number, 0)
            victim._stop("the host crashed")

    def kill(self, host: Host | str) -> None:
        """Kill the processes of a host: its kernel closes their connections, so that peers see an end or a reset.

        restart() starts them again. No effect on a host that is down.
        """
        victim = self._host(host)
        if victim.up:
            lib.fb_sim_kill(self._world.running(), victim._number)
            victim._stop("the process was killed")

    def restart(self, host: Host | str) -> None:
        """Bring a host back after crash() or kill(), and spawn anew what was running on it.

        Waits for what is left of it. Parks only if it must wait; then a cancel point.
        """
        again = self._host(host)
        if again.up:
            raise RuntimeError(f"can't restart {again.name}: it is up; crash() or kill() it first")
        for fiber in list(again._jobs):
            fiber.join()
        lib.fb_sim_power(self._world.running(), again._number, 1)
        again.up = True
        jobs, again._stopped = again._stopped, []
        for fn, args, kwargs in jobs:
            again.spawn(fn, *args, **kwargs)

    def log(self, text: str) -> None:
        """Add a line to the trace, with the time and the host of the caller."""
        self._world.log(text)

    @property
    def random(self) -> random.Random:
        """Chance for the test itself, from the seed: when to cut a link, which host to crash."""
        return self._world.entropy

    @property
    def now(self) -> float:
        """Simulated seconds since the beginning."""
        return self._world.now

    @property
    def trace(self) -> str:
        """What has happened: a line for each event, with its time; the same for the same seed."""
        return self._world.trace

    @property
    def fired(self) -> dict[str, int]:
        """How often each kind of fault struck, by the names of Faults; `lost_cancels`: what was cancelled too late."""
        return self._world.fired

    def __repr__(self) -> str:
        """Tell the seed and the time."""
        return f"<Simulation seed={self.seed} at {self.now:.6f} s, {len(self._hosts)} hosts>"

    # The run

    def _run(self) -> None:
        """Run it, once."""
        collecting = gc.isenabled()
        gc.disable()  # a collection in the middle would come at another time in each process
        try:
            with controlled(self._world.entropy):
                seed = self.seed if self.faults.shuffled else None
                run(self._root, driver=self._world, shuffle_seed=seed, debug=False)
        finally:
            self._world.end()
            if collecting:
                gc.enable()

    def _root(self) -> None:
        """Run main, and what it places on hosts, as the run's main fiber."""
        HERE.set("main")
        try:
            with scope() as hosts:
                self._scope = hosts
                self.value = self._main(self)
            self._check_sockets()
        finally:
            self._scope = None
            self._world.end()

    def _check_sockets(self) -> None:
        """Raise if the program has left sockets open."""
        if self._world.open_sockets():
            gc.collect()  # those in cycles were let go of
        left = self._world.open_sockets()
        if left:
            raise SimulationError(f"{len(left)} sockets were left open: {'; '.join(left)}")

    def _hosts_scope(self) -> Scope:
        """Return the scope of everything on hosts."""
        if self._scope is None:
            raise RuntimeError(f"can't spawn in {self!r}: it is over")
        return self._scope

    def _host(self, host: Host | str) -> Host:
        """Return a host that exists."""
        if isinstance(host, Host):
            return host
        if host not in self._hosts:
            raise ValueError(f"there is no host {host!r}; there are {', '.join(self._hosts)}")
        return self._hosts[host]


class Simulate:
    """Run main(simulation) on a simulated network, clock and chance, where one seed decides everything.

        def main(sim):
            sim.host("server").spawn(server)          # plain blocking code on fibers.net
            sim.host("client").spawn(client, "server").join()
            sim.partition("server", "client")         # heal(), crash(), kill(), restart()

        simulate(main, seed=1)
        assert not (found := simulate.search(main, seeds=range(1000))), found

    Code on hosts finds them by their names and is cancelled when main returns. `faults`: what goes wrong, Faults() by
    default. `limit`: simulated seconds, and `steps`: passes of the scheduler, after which a run counts as endless.

    Returns the Simulation, whose `value` is what main returned, with its `trace` and `fired`. What main or any host's
    code raises is raised; before, the seed and the last events are printed to stderr. SimulationError if sockets are
    left open, if the run does not end, and where the program asks for something that can't be simulated. RuntimeError
    inside a run.
    """

    def __call__(
        self,
        main: Callable[[Simulation], object],
        *,
        seed: int,
        faults: Faults | None = None,
        limit: float = 3600.0,
        steps: int = 1_000_000,
    ) -> Simulation:
        """Run one seed."""
        if not isinstance(seed, int):
            raise TypeError(f"a seed is an integer, got {seed!r}")
        simulation = Simulation(main, seed, faults or Faults(), limit, steps)
        try:
            simulation._run()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                sys.stderr.write(f"{describe(simulation, error)}\n")
            raise
        return simulation

    def search(
        self,
        main: Callable[[Simulation], object],
        *,
        seeds: Iterable[int] = range(1000),
        faults: Faults | None = None,
        limit: float = 3600.0,
        steps: int = 1_000_000,
        progress: bool = True,
    ) -> Search:
        """Run seeds until one fails; the result is true if one did, and its text says which and how to repeat it.

        `progress`: a line on stderr now and then.
        """
        result = Search()
        begun = shown = real_time()
        total = len(seeds) if isinstance(seeds, Sized) else None
        for seed in seeds:
            simulation = Simulation(main, seed, faults or Faults(), limit, steps)
            try:
                simulation._run()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is what was searched for
                result.error = error
            result._add(simulation)
            over = result.error is not None or result.runs == total
            if progress and (over or real_time() - shown >= REPORT_EVERY):
                shown = real_time()
                of = f" of {total}" if total is not None else ""
                sys.stderr.write(f"simulate: {result.runs}{of} seeds, {shown - begun:.1f} s\n")
            if over:
                break
        return result


simulate = Simulate()


class Search:
    """What a search has found: true if a seed failed.

    `seed` and `error` of that seed, `trace` its events; `runs`: how many seeds were run; `fired`: how often each kind
    of fault struck in all of them.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seed: int | None = None
        self.error: BaseException | None = None
        self.trace = ""
        self.runs = 0
        self.fired: Counter[str] = Counter()
        self._text = ""

    def _add(self, simulation: Simulation) -> None:
        """Count a run."""
        self.runs += 1
        self.fired.update(simulation.fired)
        if self.error is not None:
            self.seed, self.trace = simulation.seed, simulation.trace
            self._text = describe(simulation, self.error)

    def __bool__(self) -> bool:
        """Tell whether a seed failed."""
        return self.error is not None

    def __str__(self) -> str:
        """Tell what was found, with the last events."""
        return self._text or f"none of {self.runs} seeds failed"

    def __repr__(self) -> str:
        """Tell what was found."""
        return f"<Search {f'seed {self.seed} failed' if self else f'{self.runs} seeds passed'}>"


def describe(simulation: Simulation, error: BaseException) -> str:
    """Say which seed failed, how, after what, and how to repeat it."""
    lines = simulation.trace.splitlines()
    skipped = [f"  ... {len(lines) - LAST} events before"] if len(lines) > LAST else []
    faults = "" if simulation.faults == Faults() else f", faults={simulation.faults!r}"
    fixed = (
        ""
        if not sys.flags.hash_randomization or "PYTHONHASHSEED" in os.environ
        else ("; if the program iterates over sets of strings, set PYTHONHASHSEED, too")
    )
    return "\n".join(
        [
            f"simulate: seed {simulation.seed} failed after {simulation.now:.6f} s: {type(error).__name__}: {error}",
            *skipped,
            *(f"  {line}" for line in lines[-LAST:]),
            f"  repeat it: simulate(main, seed={simulation.seed}{faults}){fixed}",
        ]
    )
