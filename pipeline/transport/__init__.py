"""Messages between processes and hosts: publisher, subscriber, credits, shared memory, datagrams, keys, clocks."""
