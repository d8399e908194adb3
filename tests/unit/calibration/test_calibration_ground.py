"""The ground in a cloud: its height and tilt with their uncertainty, and clouds without a ground."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.ground import base_from_ground, find_ground
from pipeline.errors import ConfigError
from pipeline.rig.transforms import rotation_from_vector


def test_the_ground_gives_a_level_base_frame():
    draw = np.random.default_rng(0)
    tilt = rotation_from_vector(np.radians([3.0, -2.0, 0]))
    floor = np.column_stack([draw.uniform(-15, 15, (4000, 2)), draw.normal(-1.6, 0.02, 4000)])
    wall = np.column_stack([np.full(2000, 8.0), draw.uniform(-9, 9, 2000), draw.uniform(-1.6, 3, 2000)])
    plane = find_ground(np.vstack([floor, wall]) @ tilt.T)
    base_from_lidar, covariance = base_from_ground(plane)
    assert abs(plane.height_m - 1.6) < 3 * plane.sigma_m + 0.001 and plane.sigma_deg < 0.2
    assert np.degrees(np.arccos((base_from_lidar[:3, :3] @ tilt[:, 2])[2])) < 0.1
    assert covariance.shape == (6, 6)


def test_a_wall_is_no_ground():
    draw = np.random.default_rng(0)
    wall = np.column_stack([np.full(3000, 5.0), draw.uniform(-5, 5, 3000), draw.uniform(-3, 3, 3000)])
    with pytest.raises(ConfigError, match="no plane within 25°"):
        find_ground(wall)
