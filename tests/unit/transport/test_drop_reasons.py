"""The reasons that recordings hold, also those written before they were renamed."""

from __future__ import annotations

from pipeline.transport.drop_reasons import EDGE_REASONS, current_reasons


def test_old_names_are_counted_under_the_new_ones() -> None:
    recorded = {"a newer one came": 2, "replaced by a newer frame": 1, "overwritten in the ring": 3, "unusable": 4}
    assert current_reasons(recorded) == {
        "replaced by a newer frame": 3,
        "overwritten in shared memory": 3,
        "unusable": 4,
    }


def test_every_reason_stays_as_it_is() -> None:
    counts = dict.fromkeys(EDGE_REASONS, 1)
    assert current_reasons(counts) == counts
