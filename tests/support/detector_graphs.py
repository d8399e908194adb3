"""Small ONNX detectors whose answers are known: constants in a published layout, and one that really looks.

Example:
    path = squares(tmp_path / "squares.onnx")           # YOLOX's layout; finds red, green and blue squares of 32 px
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SIDE_PX, SQUARE_PX, STRIDES = 128, 32, (8, 16, 32)
COLOURS = ("red", "green", "blue")
BGR = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}


def constant(
    path: Path, outputs: Mapping[str, np.ndarray], *, size: Sequence[int | str], dtype: type = np.float32
) -> Path:
    """A graph that takes a picture of `size` and answers `outputs`, whatever it shows."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.UINT8 if dtype is np.uint8 else TensorProto.FLOAT
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in outputs.items()]
    graph = helper.make_graph(nodes, "constant", [helper.make_tensor_value_info("images", kind, list(size))], infos)
    return _save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path, onnx)


def squares(path: Path) -> Path:
    """(1, 3, 128, 128) BGR, 0 to 255 → (1, 336, 8): a cell of stride 8 answers for a square of 32 px around its middle,
    as far as one colour outshines the others within it more than around it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    reach, around = SQUARE_PX, 2 * SQUARE_PX
    weights = np.zeros((3, 3, around, around), np.float32)
    inner = slice((around - reach) // 2, (around + reach) // 2)
    for kind in range(3):
        for channel in range(3):
            sign = 1.0 if channel == 2 - kind else -0.5  # red is BGR's last
            weights[kind, channel] = -sign / (around**2 - reach**2)
            weights[kind, channel, inner, inner] = sign / reach**2
    cells = SIDE_PX // 8
    before = around // 2 - 4  # the window's middle on the cell's middle
    fixed = {
        "weights": weights / np.float32(255),
        "zero": np.float32(0),
        "one": np.float32(1),
        "rows": np.array([1, 3, cells * cells], np.int64),
        "boxes": np.tile(
            np.array([0.5, 0.5, np.log(SQUARE_PX / 8), np.log(SQUARE_PX / 8), 1.0], np.float32), (1, cells * cells, 1)
        ),
        "others": np.zeros((1, sum((SIDE_PX // s) ** 2 for s in STRIDES[1:]), 8), np.float32),
    }
    nodes = [
        helper.make_node(
            "Conv", ["images", "weights"], ["match"], strides=[8, 8], pads=[before, before, before + 7, before + 7]
        ),
        helper.make_node("Slice", ["match", "start", "stop", "axes"], ["cells"]),
        helper.make_node("Clip", ["cells", "zero", "one"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "rows"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["classes"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["boxes", "classes"], ["near"], axis=2),
        helper.make_node("Concat", ["near", "others"], ["output"], axis=1),
    ]
    fixed |= {
        "start": np.array([0, 0], np.int64),
        "stop": np.array([cells, cells], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 336, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in fixed.items()],
    )
    return _save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path, onnx)


def _save(model, path: Path, onnx) -> Path:  # type: ignore[no-untyped-def]
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
