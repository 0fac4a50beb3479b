"""Guests that are asked to shut down: by which button, how often, and until when."""

import time

import pytest

from microvm.errors import ApiError
from microvm.launch import shutdown
from microvm.launch.shutdown import Shutdown


class Buttons:
    """A VMM that notes what is pressed, and answers nothing."""

    def __init__(self):
        self.pressed = []

    def shut_down(self, *, power_button):
        self.pressed.append("power" if power_button else "keys")
        raise ApiError("nobody answers")


@pytest.fixture
def asked(monkeypatch):
    """Ask a guest, and go on for some times 0.1 s; returns what was pressed and the request."""
    monkeypatch.setattr(shutdown, "AGAIN_S", 0.05)

    def ask(*, steps, stops=False, timeout_s=60.0, begin=Shutdown.ask):
        buttons, request = Buttons(), Shutdown(timeout_s)
        begin(request, buttons) if begin is Shutdown.ask else begin(request)
        for _ in range(steps):
            request.step(buttons, stops=stops)
            time.sleep(0.1)
        return buttons.pressed, request

    return ask


def test_the_power_button_gives_way_to_keys_and_comes_again(asked):
    pressed, request = asked(steps=4)
    assert pressed == ["power", "keys", "power", "power"]
    assert request.repeated
    assert not request.overdue


def test_a_guest_that_says_that_it_stops_is_left_alone(asked):
    assert asked(steps=4, stops=True)[0] == ["power"]


def test_a_guest_that_ends_by_itself_is_not_asked_but_has_its_time(asked):
    pressed, request = asked(steps=2, stops=True, timeout_s=0.15, begin=Shutdown.expect)
    assert pressed == []
    assert request.begun
    assert request.step(None, stops=True)
    assert request.overdue


def test_a_guest_whose_time_is_cut_short_is_over_but_not_late(asked):
    _, request = asked(steps=1, begin=Shutdown.cut_short)
    assert request.step(None, stops=False)
    assert not request.overdue


def test_nothing_is_over_before_it_began():
    request = Shutdown(0)
    assert not request.step(None, stops=False)
    assert not request.begun
