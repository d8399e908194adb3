"""Flow control: a subscriber that must lose nothing grants credits, and the publisher waits for it when they are used up."""

INITIAL_CREDITS = 32
