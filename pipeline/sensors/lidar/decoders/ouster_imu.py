"""An Ouster's IMU, as `imu_f64` in the axes of its lidar, for a node that removes the sensor's motion from sweeps.

Example:
    imu: {use: lidar, sensor: ouster_imu, options: {metadata: os1.json}}
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.sensors.lidar.decoders.ouster import OusterPackets
from pipeline.sensors.lidar.packet_decoder import MALFORMED, SensorClock, Sweep

MAX_MPS2, MAX_RPS = 700.0, 150.0  # beyond its largest measuring range


class OusterImu(OusterPackets):
    """The IMU of an Ouster lidar."""

    port = 7503

    def __init__(self, *, metadata: str | None = None, address: str | None = None) -> None:
        """
        Args:
            metadata: The sensor's metadata, a JSON file.
            address: The sensor's address, to request the metadata from it instead.
        """
        super().__init__(metadata, address)
        self.clock = SensorClock()
        self._newest_ns = -1
        self._capture_ns = -(1 << 62)

    def take_metadata(self, text: str) -> None:
        super().take_metadata(text)
        self._turn = np.array(self.sensor.imu_to_sensor_transform)[:3, :3]

    def feed(self, packet: bytes, arrival_ns: int) -> Iterator[Sweep]:
        if self.sensor is None or len(packet) != self.format.imu_packet_size:
            self.lost[MALFORMED] += 1
            return
        raw = self.sdk.ImuPacket(self.format)
        raw.buf[:] = np.frombuffer(packet, np.uint8)
        accelerations_mps2, rates_rps = (
            np.asarray(raw.accel(), np.float64),
            np.asarray(raw.gyro(), np.float64),
        )  # (m, 3)
        times_ns = self._times_ns(raw, len(accelerations_mps2))
        # Written so that NaN fails too.
        if not (
            np.abs(accelerations_mps2).max() < MAX_MPS2 and np.abs(rates_rps).max() < MAX_RPS and times_ns.min() > 0
        ):
            self.lost[MALFORMED] += 1
            return
        self.good += 1
        last_host_ns = self.clock.stamp(int(times_ns[-1]), int(times_ns[-1]), arrival_ns)
        for at_ns, acceleration, rate in zip(times_ns, accelerations_mps2, rates_rps, strict=True):
            host_ns = last_host_ns - int(times_ns[-1] - at_ns)
            self._capture_ns = max(host_ns, self._capture_ns + 1)
            data = np.concatenate([self._turn @ acceleration, self._turn @ rate])
            error_ns = self.clock.error_ns + self._capture_ns - host_ns
            yield Sweep(self._capture_ns, 0, error_ns, data, encoding="imu_f64")

    def _times_ns(self, raw: object, count: int) -> np.ndarray:
        if count == 1:
            return np.array([int(raw.gyro_ts())], np.int64)  # type: ignore[attr-defined]
        return np.asarray(raw.timestamp(), np.int64)  # type: ignore[attr-defined]
