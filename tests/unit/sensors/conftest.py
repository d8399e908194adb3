"""Packets of lidars with known points, computed once for all tests of lidars."""

from __future__ import annotations

import pytest
from lidars import Truth, ouster, vlp16


@pytest.fixture(scope="session")
def vlp16_packets() -> tuple[list[bytes], Truth]:
    """Four turns of a VLP-16 and a little more."""
    return vlp16(310)


@pytest.fixture(scope="session")
def ouster_packets() -> tuple[str, list[bytes], list[Truth]]:
    """Four frames of an Ouster, with its metadata."""
    pytest.importorskip("ouster.sdk", reason="needs the extra ouster: scripts/setup ouster")
    return ouster(4)
