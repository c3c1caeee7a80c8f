"""Foreign code is stopped in time and memory, and the process is as it was before."""

import resource
import signal
import threading

import pytest

from nemo_probsft.data.bounded import bounded


def forever():
    while True:
        pass


def limits():
    return (
        resource.getrlimit(resource.RLIMIT_AS),
        signal.getsignal(signal.SIGALRM),
        signal.getitimer(signal.ITIMER_REAL),
    )


def test_time_and_memory_are_bounded_and_given_back():
    before = limits()
    with pytest.raises(TimeoutError, match=r"^not done after 0\.1 s$"), bounded(0.1, 1 << 30):
        forever()
    with pytest.raises(MemoryError), bounded(10, 1 << 30):
        bytearray(1 << 31)
    with bounded(10, 1 << 30):
        bytearray(1 << 28)
    assert limits() == before
    bytearray(1 << 31)


def test_memory_is_bounded_in_any_thread():
    outcome = []

    def inside():
        try:
            with bounded(10, 1 << 30):
                bytearray(1 << 31)
        except MemoryError:
            outcome.append("stopped")

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert outcome == ["stopped"]
