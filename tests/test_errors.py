"""How a command ends: its exit status, its one sentence, and what signals do to it."""

import os
import signal
import time

import pytest

from victor_jax.errors import UserError, exit_status


@pytest.fixture(autouse=True)
def handlers():
    """A command that was interrupted hears no more signals: the tests do."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_and_a_second_one_does_not_interrupt_its_cleaning_up(capsys, number, status):
    cleaned = []

    def command():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            for again in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), again)
            time.sleep(0.05)
            cleaned.append(True)

    assert exit_status(command, interrupted="stopped") == status
    assert capsys.readouterr().err == "stopped\n"
    assert cleaned


def test_a_signal_that_a_destructor_swallows_ends_the_command_all_the_same(capsys):
    class Held:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def command():
        Held()
        time.sleep(5)

    begun = time.monotonic()
    assert exit_status(command, interrupted="stopped") == 143
    assert capsys.readouterr().err == "stopped\n"
    assert time.monotonic() - begun < 2


def test_a_mistake_is_one_line(capsys):
    def command():
        raise UserError("x is missing")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert exit_status(command) == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().err == "error: x is missing\n"
