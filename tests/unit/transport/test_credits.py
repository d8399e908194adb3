"""Flow control as the publisher counts it for one subscriber."""

from __future__ import annotations

import numpy as np

from pipeline.transport.credits import MAX_CREDITS, CreditWindow


def payload() -> list[np.ndarray]:
    return [np.zeros(3, np.uint8)]


def test_each_message_uses_a_credit_and_each_grant_returns_one() -> None:
    window = CreditWindow(2)
    window.spend([])
    window.spend([])
    assert window.available == 0
    window.grant(1)
    assert window.available == 1


def test_payload_is_held_until_its_own_message_was_taken() -> None:
    window = CreditWindow(3)
    for payloads in ([], payload(), []):
        window.spend(payloads)
    assert window.holds_payloads
    window.grant(1)
    assert window.holds_payloads
    window.grant(1)
    assert not window.holds_payloads


def test_messages_without_payloads_in_shared_memory_free_no_slot() -> None:
    window = CreditWindow(3)
    window.spend([])
    assert not window.holds_payloads


def test_grant_beyond_what_was_sent_widens_the_window_only() -> None:
    window = CreditWindow(1)
    window.spend(payload())
    window.grant(5)
    assert (window.available, window.holds_payloads) == (5, False)


def test_array_lives_exactly_as_long_as_its_message_is_untaken() -> None:
    import weakref

    window, array = CreditWindow(1), np.zeros(3, np.uint8)
    alive = weakref.ref(array)
    window.spend([array])
    del array
    assert alive() is not None
    window.grant(1)
    assert alive() is None


def test_credits_are_bounded_however_many_are_granted() -> None:
    window = CreditWindow(2**31)
    assert window.available == MAX_CREDITS
    window.grant(2**31)
    assert window.available == MAX_CREDITS
    for _ in range(MAX_CREDITS):
        window.spend([])
    assert window.available == 0
