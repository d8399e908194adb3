"""The decoders that `sensor:` may name, one vendor a file."""
