"""Losses, counted from session and seq numbers alone."""

from __future__ import annotations

from pipeline.transport.sequence import Sequence


def test_what_was_sent_before_the_welcome_was_never_promised() -> None:
    sequence = Sequence()
    assert sequence.welcome(session=7, seq=100) == 0
    assert sequence.received(7, 100) == 0


def test_gap_is_counted_once() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    assert [sequence.received(7, seq) for seq in (0, 3, 4)] == [0, 2, 0]


def test_restarted_publisher_begins_a_new_count() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    sequence.received(7, 0)
    assert sequence.welcome(session=8, seq=50) == 0
    assert sequence.received(8, 51) == 1
    assert sequence.publisher_restarts == 1


def test_second_welcome_of_a_session_counts_what_was_sent_since_the_last_message() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    sequence.received(7, 0)
    assert sequence.welcome(7, 5) == 4
    assert sequence.publisher_restarts == 0


def test_message_of_another_session_counts_no_loss() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    assert sequence.received(8, 40) == 0


def test_end_shows_the_messages_lost_before_it_and_is_none_itself() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    assert sequence.ended(7, 2) == 2
    assert sequence.expected == 2


def test_malformed_message_leaves_no_gap() -> None:
    sequence = Sequence()
    sequence.welcome(7, 0)
    sequence.malformed()
    assert sequence.received(7, 1) == 0


def test_repeated_number_is_no_negative_loss() -> None:
    sequence = Sequence()
    sequence.welcome(7, 5)
    assert sequence.received(7, 3) == 0


def test_no_welcome_makes_a_negative_number_of_missed_messages() -> None:
    sequence = Sequence()
    sequence.welcome(1, 5)
    sequence.received(1, 20)
    assert sequence.welcome(1, 3) == 0
    assert sequence.received(1, 2) == 0
