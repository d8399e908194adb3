"""Lidars: packets over UDP, sweeps, de-skewing."""
