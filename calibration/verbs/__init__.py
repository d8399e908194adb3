"""What `calibrate KIND` calls, one kind a file."""
