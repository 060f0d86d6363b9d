"""Signals that ask to stop: when they do, and what is done to its end first."""

import os
import signal
import subprocess
import sys

import pytest

from qtool.stopping import Stopped, heeding_signals, held_back


def ask(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_once_but_not_inside_a_block_that_is_held_back(
    number: signal.Signals,
) -> None:
    with heeding_signals(), pytest.raises(Stopped) as stopped:
        ask(number)
    assert stopped.value.exit_code == {"SIGTERM": 143, "SIGHUP": 129}[number.name]
    done = []
    with heeding_signals(), pytest.raises(Stopped):  # noqa: PT012  it comes at a block's end
        with held_back():
            with held_back():
                ask(number)
                done.append("inner")
            done.append("outer")
        done.append("behind")
    assert done == ["inner", "outer"]


def test_ctrl_c_is_not_held_back() -> None:
    with heeding_signals(), pytest.raises(KeyboardInterrupt) as stopped, held_back():
        ask(signal.SIGINT)
    assert not isinstance(stopped.value, Stopped)


def test_what_is_asked_once_is_not_asked_again() -> None:
    with heeding_signals():
        with pytest.raises(Stopped):
            ask(signal.SIGTERM)
        with held_back():
            ask(signal.SIGTERM)
            ask(signal.SIGHUP)


def test_an_error_inside_a_block_is_the_error() -> None:
    def fail() -> None:
        with held_back():
            ask(signal.SIGTERM)
            raise ZeroDivisionError

    with heeding_signals(), pytest.raises(ZeroDivisionError):
        fail()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kept = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with heeding_signals():
            assert signal.getsignal(signal.SIGINT) not in kept
            ask(signal.SIGHUP)  # as under nohup
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == kept
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_the_process_where_it_is_and_silently(first: signal.Signals) -> None:
    program = (
        "import os, sys\n"
        "from qtool.stopping import held_back, heeding_signals\n"
        "with heeding_signals():\n"
        "    try:\n"
        f"        os.kill(os.getpid(), {int(first)})\n"
        "    except KeyboardInterrupt:\n"
        "        try:\n"
        f"            os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "        finally:\n"
        "            print('not silent')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_python_takes_itself_down_ends_it_silently() -> None:
    program = (
        "import atexit, os, signal\n"
        "from qtool.stopping import heeding_signals\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "with heeding_signals(at_the_end=True):\n"
        "    pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
