"""How a command ends: its exit status, its one sentence, and what signals do to it."""

import os
import signal
import time

import pytest

from victor_jax.errors import UserError, exit_status


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

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert exit_status(command, interrupted="stopped") == status
    assert capsys.readouterr().err == "stopped\n"
    assert cleaned
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_mistake_is_one_line(capsys):
    def command():
        raise UserError("x is missing")

    assert exit_status(command) == 2
    assert capsys.readouterr().err == "error: x is missing\n"
