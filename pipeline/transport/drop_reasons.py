"""Why a message that was sent to a node or subscriber was never processed there, as counters and reports name it.

What a node itself drops has other reasons, and was received before.
"""

from __future__ import annotations

LOST = "lost in transport"  # a gap in seq: the queue of the socket was full
OVERWRITTEN = "overwritten in shared memory"  # read too late: its slot holds a later payload
MALFORMED = "malformed"  # could not be decoded or decompressed
REPLACED = "replaced by a newer frame"  # queue: latest
TOO_SLOW = "reader too slow"  # queue: n, and n newer ones were waiting
UNREAD = "not read before the end"  # still waiting when the node ended
CLOCK_JUMPED = "the clock of its host jumped"  # its time cannot be converted to this host's

DIED = "lost with a process that died"  # at most: what it did after its last report is not known
ON_ITS_WAY = "on its way at the end"  # the end did not wait for it

EDGE_REASONS = (LOST, OVERWRITTEN, MALFORMED, REPLACED, TOO_SLOW, UNREAD, CLOCK_JUMPED, DIED, ON_ITS_WAY)
