"""Threads that make requests: as many as allowed, in order, and nobody waits for one that hangs once all is closed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.stores.hands import Hands


@given(st.integers(1, 5), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_everything_is_done_once_in_order_of_beginning_and_at_most_so_many_at_a_time(most, count):
    lock, begun, now, highest = threading.Lock(), [], 0, 0
    hands = Hands(most, "test")

    def work(number):
        nonlocal now, highest
        with lock:
            begun.append(number)
            now += 1
            highest = max(highest, now)
        time.sleep(0.0005)
        with lock:
            now -= 1
        return number

    futures = [hands.begin(lambda number=number: work(number)) for number in range(count)]
    assert [future.result(60) for future in futures] == list(range(count))
    assert sorted(begun) == list(range(count))
    assert highest <= most
    if most == 1:
        assert begun == sorted(begun)
    hands.close()


def test_what_fails_fails_where_it_is_asked_for():
    hands = Hands(2, "test")
    with pytest.raises(ZeroDivisionError):
        hands.begin(lambda: 1 // 0).result(60)
    assert hands.begin(lambda: 7).result(60) == 7
    hands.close()


def test_who_waits_is_told_when_all_is_closed_though_a_thread_hangs():
    hangs, hands = threading.Event(), Hands(1, "test")
    first, second = hands.begin(hangs.wait), hands.begin(lambda: 1)
    hands.close()
    for future in (first, second, hands.begin(lambda: 2)):
        with pytest.raises(CancelledError):
            future.result(60)
    hangs.set()  # only now may the thread end


def test_the_end_of_the_process_waits_for_those_that_are_awaited_and_for_no_others():
    program = """
        import sys, threading, time
        from shards.stores.hands import Hands
        begun, awaited = threading.Event(), sys.argv[1] == "awaited"
        work = lambda: (begun.set(), time.sleep(0.3 if awaited else 600), print("done", flush=True))
        Hands(1, "test", awaited=awaited).begin(work)
        begun.wait()
        """
    for kind, printed in (("awaited", "done\n"), ("left", "")):
        command = [sys.executable, "-c", textwrap.dedent(program), kind]
        assert subprocess.run(command, capture_output=True, text=True, timeout=120).stdout == printed
