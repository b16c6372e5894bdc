"""Signals: the first raises the flag, the second ends the process, and the former handlers come back."""

import os
import signal
import subprocess
import sys

import pytest

from studycore.stopping import StopFlag, stop_on_signals


@pytest.fixture(autouse=True)
def _hang_up_is_heard():
    """Also where the tests themselves run under `nohup`."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_raises_the_flag_and_the_handlers_come_back(number):
    former = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def fail(stop):
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.name == number.name
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), stop_on_signals() as stop:
        fail(stop)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == former
    with stop_on_signals() as stop:
        assert not stop


def test_the_second_signal_ends_the_process_at_once():
    code = """
import os, signal
from studycore.stopping import stop_on_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with stop_on_signals(patient=PATIENT) as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here, told by", stop.name)
"""
    for patient, expected in ((False, (143, "")), (True, (0, "still here, told by SIGHUP\n"))):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("PATIENT", str(patient))], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == expected


def test_a_terminal_that_is_closed_is_heard_twice_and_ends_nothing_at_once():
    """Its hang-up comes from the shell and from the system, and `nohup` keeps it away."""
    code = """
import os, signal
from studycore.stopping import stop_on_signals
IGNORE
with stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    print(stop.name)
"""
    for ignore, expected in (("", "SIGHUP\n"), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", "None\n")):
        done = subprocess.run([sys.executable, "-c", code.replace("IGNORE", ignore)], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, expected)


def test_a_block_within_another_shares_its_flag():
    with stop_on_signals() as outer:
        handler = signal.getsignal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with stop_on_signals() as inner:
            assert inner is outer
            assert inner.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == handler
    assert not StopFlag()
