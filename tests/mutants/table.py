"""One-line mutants of scope.py, sync.py, channel.py and the patched library, each beside what it breaks and its test.

`make mutants` applies each to a copy of the package and runs its test, which must fail. The old text occurs exactly
once in its file; tests/test_mutants.py checks that, so that no entry rots.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A change of one line, and who must notice."""

    rule: str
    module: str
    old: str
    new: str
    test: str  # file of tests/ without test_ and .py, then what the test's name contains


MUTANTS = [
    # scope.py
    Mutant(
        "C3", "scope", "    for need in (LIVE, ALL):\n", "    for need in (ALL,):\n", "fiber b9_a_daemon_is_cancelled"
    ),
    Mutant(
        "B9",
        "scope",
        '                child.cancel("a daemon whose',
        '                str("a daemon whose',
        "fiber b9_a_daemon_is_cancelled",
    ),
    Mutant(
        "C4", "scope", '        scope.cancel(f"{type(error).__name__}: {error}")\n', "", "scope c4_an_error_of_the_body"
    ),
    Mutant(
        "C4",
        "scope",
        '    scope.cancel(f"{type(failure).__name__}: {failure}" if',
        '    str(f"{type(failure).__name__}: {failure}" if',
        "scope case_09",
    ),
    Mutant(
        "C7",
        "scope",
        "    if scope._kind == KIND_SUPERVISOR and isinstance(failure, Exception):",
        "    if False:",
        "scope case_21",
    ),
    Mutant(
        "C7", "scope", "            if entry._observed:\n", "            if False:\n", "scope c7_a_failure_observed"
    ),
    Mutant(
        "C7",
        "scope",
        "            scope._failures.append(fiber)\n",
        "            scope._failures.append(failure)\n",
        "scope case_21",
    ),
    Mutant(
        "C7",
        "scope",
        "            scope._on_error(fiber, failure)\n",
        "            scope._on_error(failure, fiber)\n",
        "scope c7_on_error",
    ),
    Mutant(
        "C6", "scope", '            inner.cancel("its scope was left without it")\n', "", "scope case_33_scopes_exited"
    ),
    Mutant("C6", "scope", "    if inner is not root:\n", "    if False:\n", "scope c6_a_fiber_that_ends"),
    Mutant("D4", "scope", "            if outer:\n", "            if False:\n", "scope case_30"),
    Mutant(
        "D4",
        "scope",
        "                scope.cancelled_caught = True\n",
        "                pass\n",
        "timeout case_45_move_on",
    ),
    Mutant(
        "D5",
        "scope",
        "        if isinstance(error, Cancelled) or saw_cancelled:\n",
        "        if isinstance(error, Cancelled):\n",
        "timeout case_48",
    ),
    Mutant(
        "D6",
        "scope",
        "        if isinstance(error, Cancelled) or saw_cancelled:\n",
        "        if cancelled or saw_cancelled:\n",
        "timeout d6_a_body_that_ended",
    ),
    Mutant("D7", "scope", "    if stray:\n", "    if False:\n", "scope d7_a_cancelled_that_escapes"),
    Mutant(
        "D10",
        "scope",
        " and not scope._cancelled and not scope._soft\n",
        " and not scope._cancelled\n",
        "grace d10_what_is_cleaned",
    ),
    Mutant(
        "D10",
        "scope",
        "    outer = scope._outer_cancelled or passing\n",
        "    outer = scope._outer_cancelled\n",
        "grace d10_what_is_cleaned",
    ),
    Mutant("D11", "scope", "        RuntimeWarning,\n", "        UserWarning,\n", "scope case_39"),
    Mutant("E1", "scope", " and not any(failure is other for other in failures):", ":", "scope e1_a_group_that_comes"),
    Mutant(
        "E1",
        "scope",
        "    kept = [f for f in failures if not any(o is not f and reaches(o, f) for o in failures)]\n",
        "    kept = list(failures)\n",
        "scope case_14",
    ),
    Mutant(
        "E1",
        "scope",
        "        kept = failures[:1]  # they",
        "        kept = failures[1:]  # they",
        "scope e1_of_failures_that_name",
    ),
    Mutant(
        "E1",
        "scope",
        "            flat += [part for part in parts if not any(part is other for other in flat)]\n",
        "            flat += parts\n",
        "scope e1_a_failure_that_comes_by_two_ways",
    ),
    Mutant(
        "E1",
        "scope",
        "        todo += [link.__cause__, link.__context__]\n",
        "        todo += [link.__cause__]\n",
        "scope case_14",
    ),
    Mutant("E3", "scope", "        return bool(scope._strict)\n", "        return False\n", "scope case_18"),
    Mutant(
        "E3",
        "scope",
        "    return bool(runtime is not None and runtime.strict)\n",
        "    return False\n",
        "run e3_run_strict_makes",
    ),
    Mutant("E4", "scope", "    vars(made)[MARK] = True\n", "", "scope case_11"),
    Mutant(
        "E5",
        "scope",
        "        if isinstance(failure, (KeyboardInterrupt, SystemExit)):\n",
        "        if isinstance(failure, KeyboardInterrupt):\n",
        "scope case_19",
    ),
    Mutant(
        "E6",
        "scope",
        "            if failed is not None:\n",
        "            if failed is not None and not outer:\n",
        "scope e6_a_failure_beats_an_outer",
    ),
    Mutant(
        "E8",
        "scope",
        "                outcome.__context__ = context  #",
        "                pass  #",
        "scope e8_a_failure_does",
    ),
    Mutant(
        "G1",
        "scope",
        "                if scope._kind == KIND_TIMEOUT and scope._expired:\n",
        "                if scope._kind == KIND_TIMEOUT:\n",
        "timeout g1_timeout_error_only",
    ),
    Mutant(
        "G2",
        "scope",
        "                if scope._kind == KIND_TIMEOUT and scope._expired:\n",
        "                if scope._expired:\n",
        "timeout case_45_move_on",
    ),
    Mutant(
        "B7",
        "scope",
        "            if was_cancelled or root.cancelled_caught:\n",
        "            if False:\n",
        "fiber case_24",
    ),
    Mutant("B2", "scope", "            fiber._propagates = True\n", "            pass\n", "scope d5"),
    # sync.py
    Mutant(
        "I1",
        "sync",
        "        if self._owner is None and timeout == -1:\n",
        "        if timeout == -1:\n",
        "sync i1_a_lock_excludes",
    ),
    Mutant(
        "I1",
        "sync",
        "            self._owner = None if waiter is None else waiter.fiber\n",
        "            self._owner = None\n",
        "sync case_67",
    ),
    Mutant(
        "I3", "sync", "        if owner is not current():\n", "        if owner is None:\n", "sync i3_only_the_owner"
    ),
    Mutant(
        "I3", "sync", "        if holder is fiber:\n", "        if False:\n", "sync i3_a_lock_is_not_acquired_twice"
    ),
    Mutant(
        "I3", "sync", "        if holder.done() or holder._runtime._forked:\n", "        if False:\n", "sync case_73"
    ),
    Mutant("I3", "sync", "            owner._watch(self._abandon)\n", "            pass\n", "sync case_73"),
    Mutant("I3", "sync", "            owner._unwatch(self._abandon)\n", "            pass\n", "sync case_73_a_former"),
    Mutant(
        "I3",
        "sync",
        "        if self._count > 1 and self._owner is current():\n",
        "        if self._count > 2 and self._owner is current():\n",
        "sync i3_an_rlock",
    ),
    Mutant("I6", "sync", "    if holder._runtime is not fiber._runtime:\n", "    if False:\n", "sync i6_a_lock_held"),
    Mutant(
        "I1",
        "sync",
        "        while n and self._waiters and self._waiters.wake_first() is not None:\n",
        "        while False:\n",
        "sync i1_a_permit_belongs",
    ),
    Mutant("I1", "sync", "        self._value += n\n", "        self._value += 1\n", "sync i1_a_release_of_many"),
    Mutant("I1", "sync", "        self._value = value\n", "        self._value = 1\n", "sync i1_a_semaphore_lets"),
    Mutant(
        "I1",
        "sync",
        "        return self._flag or self._waiters.wait",
        "        return self._waiters.wait",
        "sync i1_an_event_wakes",
    ),
    Mutant("I2", "sync", "            with shield():\n", "            if True:\n", "sync i2_the_re_acquire"),
    Mutant(
        "I2",
        "sync",
        "            except BaseException:\n                self._waiters.wake_first()\n",
        "            except BaseException:\n",
        "sync case_71",
    ),
    Mutant(
        "I1",
        "sync",
        "        return not self._holders or (purpose == READ and not self._writing)\n",
        "        return not self._holders or purpose == READ\n",
        "sync i1_many_read",
    ),
    Mutant(
        "I1", "sync", "(self._waiters and fiber not in self._holders):\n", "False:\n", "sync i1_readers_and_writers"
    ),
    Mutant("I2", "sync", "            if woken is None:\n", "            if False:\n", "sync i2_a_writer_that_gave_up"),
    Mutant(
        "I2",
        "sync",
        "            self._runner = None if waiter is None else waiter.fiber\n",
        "            self._runner = None\n",
        "sync i2_if_the_runner",
    ),
    Mutant("I1", "sync", "        self._done = True\n", "        pass\n", "sync i1_once_runs"),
    # channel.py
    Mutant(
        "I4",
        "channel",
        "        if len(self._items) < self._capacity:\n",
        "        if len(self._items) <= self._capacity:\n",
        "channel i4_a_channel_without_capacity",
    ),
    Mutant(
        "I4",
        "channel",
        '            raise is_closed("put into", self)\n        getter',
        "            pass\n        getter",
        "channel case_70_a_put",
    ),
    Mutant(
        "I1",
        "channel",
        "            return self._items.popleft()\n",
        "            return self._items.pop()\n",
        "channel i1_items_come",
    ),
    Mutant(
        "I1",
        "channel",
        "            self._items.append(putter.value)\n",
        "            self._items.appendleft(putter.value)\n",
        "channel i1_waiting_putters",
    ),
    Mutant(
        "I4", "channel", '        end(self._getters, "get from", self)\n', "", "channel case_70_close_wakes_the_getters"
    ),
    Mutant(
        "I4", "channel", '        end(self._putters, "put into", self)\n', "", "channel case_70_close_wakes_the_putters"
    ),
    Mutant(
        "I4",
        "channel",
        "        if self._items:\n            return",
        "        if self._items and not self._closed:\n            return",
        "channel case_70_getters_drain",
    ),
    Mutant("I1", "channel", "        queue.leave(waiter)\n", "        pass\n", "channel i4_select_gives_up"),
    Mutant(
        "I1", "channel", "            putter.value = NOTHING\n", "            pass\n", "channel i4_select_waits_to_put"
    ),
    Mutant(
        "I4",
        "channel",
        "            self._missed += 1\n",
        "            self._missed = 1\n",
        "channel i4_a_put_to_a_broadcast",
    ),
    Mutant(
        "I4",
        "channel",
        "        if len(channel) == channel._capacity:\n",
        "        if False:\n",
        "channel i4_a_put_to_a_broadcast",
    ),
    Mutant("I4", "channel", "        self._version += 1\n", "        pass\n", "channel i4_a_watch_has"),
    Mutant(
        "I4",
        "channel",
        "            if waiter.value < self._version:\n",
        "            if False:\n",
        "channel i4_wait_returns",
    ),
    Mutant(
        "F2",
        "channel",
        "        if self._version <= version:\n",
        "        if True:\n",
        "channel f2_the_wait_of_a_watch",
    ),
    Mutant(
        "I6",
        "channel",
        'had."""\n        if native.runtime() is None:\n',
        'had."""\n        if False:\n',
        "channel i6_a_channel_used_outside",
    ),
    Mutant("#392", "runtime", " or handles_signals()):", "):", "monkey_regressions 392"),
    # monkey.py and stdlib: the rules of L and what gevent's users ran into
    Mutant("L2", "stdlib/thread", "        run_exit_callbacks()\n        while", "        while", "monkey case_90"),
    Mutant(
        "L2",
        "stdlib/thread",
        "native.current()._runtime._main._root\n",
        "native.current()._scope\n",
        "monkey l2_a_thread_is_a_fiber",
    ),
    Mutant("L4", "monkey", "waiting.wait = waiting.wait_poll", "waiting.wait = waiting.wait", "monkey l4_psycopg"),
    Mutant("L7", "stdlib/select", "events._get_running_loop() is not None:", "False:", "monkey l7_a_coroutine"),
    Mutant("L6", "stdlib/queue", "    if LINES:\n", "    if False:\n", "monkey case_90"),
    Mutant(
        "#1777",
        "stdlib/ssl",
        'yield "SSLContext._wrap_socket", _wrap_socket',
        'yield "SSLContext", type("SSLContext", (ssl.SSLContext,), {"_wrap_socket": _wrap_socket})',
        "monkey_regressions 1777",
    ),
    Mutant(
        "#245",
        "stdlib/thread",
        "if isinstance(error, (Cancelled, KeyboardInterrupt)):",
        "if False:",
        "monkey_regressions 245",
    ),
    Mutant("#1904", "net/dns", "POOL = Pool(16)", "from fibers.threads import POOL", "monkey_regressions 1904"),
    Mutant(
        "patching in a library",
        "monkey",
        "        put(where, place, row.patch.replacement)\n",
        "",
        "monkey references_made",
    ),
    Mutant("undo", "monkey", "        assign(owner, name, done.before)\n", "", "monkey patching_again"),
]
