"""What kind of place the camera looks at (street, forest, office …): AlignedSet → Prediction.

A place changes slowly, so the network does not run on every set: `every_ms` limits how often. Between two runs the last
answer is held, and the prediction's opinion states its age. All depends on the frames' seq and capture_ns alone.

Example:
    task = Place(every_ms=200)
    task.open("auto")
    task.predict(aligned).label                      # "street"
"""

from __future__ import annotations

from pipeline.frame import AlignedSet, Opinion, Prediction
from pipeline.perception.inputs import PICTURES, Picture
from pipeline.perception.place import MODEL, PlaceEstimator, PlaceModel
from pipeline.task import Task


class Place(Task):
    """`probs` are those of the newest picture of the set's first camera, smoothed. A covered lens counts as missing,
    and so does a camera that sent nothing: there is no label then."""

    def __init__(
        self,
        *,
        model: str = MODEL,
        smoothing_ms: float = 1000.0,
        every_ms: float = 200.0,
        uncertain_below: float = 0.35,
        threads: int = 1,
    ) -> None:
        """
        Args:
            model: A file of the models folder, without .onnx, or a path that ends with it.
            smoothing_ms: Time constant of an exponential mean over the probabilities (ms, ≥ 0; 0: none). Default 1000:
                a place lasts longer than that.
            every_ms: Least time between two runs of the network (ms, ≥ 0; 0: on every set). Default 200: a run costs 16
                ms.
            uncertain_below: The label is "uncertain" where no probability reaches this (0 ≤ p < 1).
            threads: CPU threads of the network (≥ 1). Default 1: cameras and other tasks need the other cores.
        """
        if smoothing_ms < 0 or every_ms < 0 or threads < 1:
            raise ValueError("smoothing_ms and every_ms must be at least 0, threads at least 1")
        if not 0 <= uncertain_below < 1:
            raise ValueError("uncertain_below must be from 0 to below 1")
        self._model_name, self._smoothing_ms, self._every_ms = model, smoothing_ms, every_ms
        self._uncertain_below, self._threads = uncertain_below, threads

    def open(self, backend: str) -> None:
        model = PlaceModel.open(self.open_engines(backend, threads=self._threads), self._model_name)
        self.labels, self.model = model.labels, model.id
        self._estimator = PlaceEstimator(model, smoothing_ms=self._smoothing_ms, every_ms=self._every_ms)

    def predict(self, aligned: AlignedSet) -> Prediction:
        frame = next(
            (frames[-1] for frames in aligned.frames.values() if frames and frames[-1].encoding in PICTURES), None
        )
        if frame is None:
            return self.prediction(aligned, None)
        probs, fault, age_ns = self._estimator.update(Picture(frame))
        if probs is None:
            return self.prediction(
                aligned, None, bad={frame.stream: fault}, opinions=[Opinion("place", frame.stream, 0.0, (), fault)]
            )
        age = f"held: looked {age_ns / 1e6:.0f} ms before this picture" if age_ns else ""
        return self.prediction(
            aligned,
            probs,
            used=(frame.stream,),
            uncertain_below=self._uncertain_below,
            opinions=[Opinion("place", frame.stream, 1.0, tuple(float(p) for p in probs), age)],
        )
