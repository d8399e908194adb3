"""What it costs to make sweeps of packets: CPU time on one core, from recorded packets of real sensors, and to de-skew
them.

    python -m benchmarks.lidar [--rounds 7] [--json OUT.json]

Needs the lidar captures of SENSORIUM_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError
from pipeline.recording.importers.formats import open_source
from pipeline.sensors.lidar.deskew import deskew, from_rates
from pipeline.sensors.lidar.packet_decoder import Sweep, make

SWEEP_POINTS = 120_000  # what the scene's budget is stated for
CAPTURES = (
    ("VLP-16, two returns", "velodyne_bag/vlp16", "velodyne"),
    ("XT32, two returns", "hesai_bag/xt32", "hesai"),
    ("OS1-32, legacy", "ouster/OS-1-32-G_v2.1.1_1024x10.pcap", "ouster"),
    ("OS0-32, two returns", "ouster/OS-0-32-U1_v2.2.0_1024x10.pcap", "ouster"),
    ("OS1-128", "ouster/OS-1-128_v2.3.0_1024x10_lb_n3.pcap", "ouster"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(os.environ.get("SENSORIUM_DATA") or "../shared/data") / "lidar"
    if not folder.is_dir():
        print(f"no captures at {folder}: set SENSORIUM_DATA", file=sys.stderr)
        return 2
    rows = []
    print(
        f"{'sensor':<22}{'points':>9}{'packets':>9}{'ms a sweep':>12}{'ms / 120,000':>14}"
        f"{'de-skew':>9}{'at its end':>12}"
    )
    for name, place, sensor in CAPTURES:
        try:
            row = measured(folder / place, sensor, args.rounds)
        except ConfigError as error:
            print(f"{name:<22} {error}")
            continue
        rows.append({"sensor": name} | row)
        print(
            f"{name:<22}{row['points']:>9.0f}{row['packets']:>9.1f}{row['ms']:>12.2f}{row['ms_of_120000']:>14.1f}"
            f"{row['deskew_ms']:>9.1f}{row['last_packet_ms']:>12.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


def measured(source: Path, sensor: str, rounds: int) -> dict[str, float]:
    """Medians over the rounds, CPU time of this process. last_packet_ms: what is left to do when a sweep's last packet
    comes."""
    path = source if source.is_file() else next(source.glob("*/metadata.yaml")).parent
    frames = list(open_source(path).frames)
    metadata = next((f.data.tobytes().decode() for f in frames if f.encoding == "calibration"), "")
    packets = [(f.data.tobytes(), f.capture_ns) for f in frames if f.encoding == "packet" and "imu" not in f.stream]
    decode_ms, last_ms, deskew_ms, points = [], [], [], []
    for _ in range(rounds):
        total_ms, sweeps = 0.0, []
        for at_ms, completed in timed(packets, metadata, sensor):
            total_ms += at_ms
            if completed:
                sweeps += completed
                last_ms.append(at_ms)
        whole = sum(len(sweep.data) for sweep in sweeps)
        decode_ms.append(total_ms / whole)  # ms a point
        points.append(max(len(sweep.data) for sweep in sweeps))
        sweep = max(sweeps, key=lambda sweep: len(sweep.data))
        times_ns = sweep.capture_ns + np.arange(-1, 12) * 10_000_000
        motion = from_rates(times_ns, np.tile([0.0, 0.0, 0.5], (13, 1)), np.tile([10.0, 0.0, 0.0], (13, 1)))
        begin_s = time.process_time()
        deskew(sweep.data, sweep.capture_ns, motion)
        deskew_ms.append((time.process_time() - begin_s) * 1000)
    a_point, a_sweep = statistics.median(decode_ms), float(statistics.median(points))
    share = a_sweep / sum(len(s.data) for s in sweeps)
    return {
        "points": a_sweep,
        "packets": len(packets) * share,
        "ms": a_point * a_sweep,
        "ms_of_120000": a_point * SWEEP_POINTS,
        "deskew_ms": statistics.median(deskew_ms),
        "last_packet_ms": statistics.median(last_ms),
    }


def timed(packets: list[tuple[bytes, int]], metadata: str, sensor: str) -> Iterator[tuple[float, list[Sweep]]]:
    """(ms it took, sweeps) of each packet, by a new decoder."""
    decoder = make(sensor, {}, where="benchmark")
    decoder.open()
    if metadata:
        decoder.take_metadata(metadata)
    for packet, arrival_ns in packets:
        begin_s = time.process_time()
        completed = decoder.take(packet, arrival_ns)
        yield (time.process_time() - begin_s) * 1000, completed
    yield 0.0, list(decoder.finish())


if __name__ == "__main__":
    sys.exit(main())
