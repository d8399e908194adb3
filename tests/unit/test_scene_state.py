"""What is around, as a prediction carries it: through the wire and into JSON."""

import json
from pathlib import Path

import jsonschema
import numpy as np

from pipeline.frame import Frame, Prediction, Subject
from pipeline.recording.mcap.decode import decode
from pipeline.recording.mcap.encode import encode, kind_of
from pipeline.recording.mcap.schemas import POINTS
from pipeline.scene_state import FREE, OCCUPIED, UNKNOWN, FreeSpace, Obstacle, PathClearance, SceneState, Sector, Sound
from pipeline.transport.compression import compress, decompress

SCHEMA = Path(__file__).parents[2] / "docs/prediction.schema.json"

GRID = FreeSpace(np.array([[UNKNOWN, FREE], [FREE, OCCUPIED]], np.uint8), 0.5, (-1.0, -0.5))
AROUND = SceneState(
    ahead=PathClearance("caution", ("obstacle 3 at 1.2 m",), 1.2, 0.9),
    obstacles=(
        Obstacle(3, (1.5, 0.0, 0.4), (0.6, 0.5, 0.8), 0.0, 1.2, 0.0, (-1.3, 0.0), 0.2, 0.9, 40, "person", 0.7),
        Obstacle(4, (5.0, 2.0, 0.4), (0.6, 0.5, 0.8), 0.0, 5.1, 21.8),
    ),
    sectors=(Sector(-180, 0, None), Sector(0, 180, 1.2, 0.9, 0.5)),
    free_space=GRID,
    sounds=(Sound("rain", 0.8),),
)
CAR = Subject(1, (10, 20, 30, 40), (), 0.9, label="car", range_m=7.5, position_m=(7.0, 1.0, 0.5), closing_mps=-0.5)
PREDICTION = Prediction(
    "scene",
    5,
    ("street", "coast"),
    np.array([0.75, 0.25], np.float32),
    "street",
    "m@1",
    (CAR,),
    timing_ns={"wait": 0, "infer": 0, "total": 0},
    surroundings=AROUND,
)


def test_a_cell_is_looked_up_by_position_and_unknown_outside_the_grid():
    assert GRID.at(-0.6, 0.4) == FREE
    assert GRID.at(-0.1, 0.1) == OCCUPIED
    assert GRID.at(-1.1, 0.1) == GRID.at(9.0, 0.0) == UNKNOWN


def test_what_is_around_comes_back_from_a_recording_as_it_was():
    again = decode("sensorium.Prediction", encode(PREDICTION, 0, "scene"))
    assert again.record() == PREDICTION.record()
    assert again.surroundings.free_space.cells.tolist() == GRID.cells.tolist()


def test_its_json_is_what_the_schema_says_and_a_grid_is_a_picture_of_letters():
    record = PREDICTION.record()
    jsonschema.validate(json.loads(json.dumps(record)), json.loads(SCHEMA.read_text()))
    assert record["surroundings"]["free_space"]["rows"] == ["?.", ".#"]
    assert record["subjects"][0]["label"] == "car"


def test_points_with_their_times_pass_a_network_and_a_recording_to_the_bit():
    points = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    frame = Frame("lidar", 1, 2, "points_xyzit_f32", points, 100)
    sent = compress(frame)
    assert sent.encoding == "points_t_zlib"
    assert decompress(sent).data.tobytes() == points.tobytes()
    assert kind_of(frame) == POINTS
    assert decode(POINTS, encode(frame, 0, "lidar")).data.tobytes() == points.tobytes()
