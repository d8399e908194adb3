"""calibrate camera live: guided capture with a live camera, in the terminal and on a page of this machine.

It only connects parts: pipeline/sensors/camera/ reads the camera, board/detect.py detects the board, lens/guide.py
advises, pipeline/web/server.py serves the page. Capture ends when the guide has enough views, when Finish is pressed on
the page, or with Ctrl-C; the views taken so far are used.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from calibration.board.board import Board
from calibration.board.detect import Detector
from calibration.lens.guide import Advice, Guide
from calibration.lens.views import CameraViews, add
from pipeline.clock import LiveClock
from pipeline.errors import DeviceError
from pipeline.sensors.camera.network import network_pictures
from pipeline.sensors.camera.picture import LOST_AFTER_S, OPEN_TIMEOUT_S, fit
from pipeline.sensors.camera.reader import PictureReader
from pipeline.sensors.camera.usb import usb_pictures
from pipeline.web.server import PageServer

WIDTH_PX = 1280  # as the camera node requests: a lens must be calibrated in the mode it is used in
PICTURE_WAIT_S = OPEN_TIMEOUT_S + LOST_AFTER_S  # the reader raises its own, more specific error earlier
SHOWN_WIDTH_PX = 960
MISMATCH_AFTER = 40  # pictures without the board before another board is searched
HTML = Path(__file__).with_suffix(".html")


def capture(board: Board, args: argparse.Namespace) -> CameraViews:
    """Raises DeviceError for a camera that cannot be opened, ConfigError for a port that is in use."""
    named = args.source[1] if len(args.source) > 1 else "0"
    device: int | str = int(named) if named.isdecimal() else named
    where, clock = f"calibrate: camera {named}", LiveClock()
    if isinstance(device, str) and "://" in device:
        pictures = network_pictures(device, (None, None), clock, where)
    else:
        pictures = usb_pictures(device, (WIDTH_PX, None), None, clock, where)
    with ExitStack() as stack:
        reader = PictureReader(pictures)
        stack.callback(reader.stop)
        page = None
        if args.page is not None:
            page = Page(port=args.page)
            stack.callback(page.stop)
            print(f"  Page: {page.url}")
        print("  Hold the board in view. Ctrl-C ends the capture early.", flush=True)
        return guided(reader, board, until_px=args.until_px, page=page)


def guided(reader: PictureReader, board: Board, *, until_px: float, page: Page | None = None) -> CameraViews:
    """Captures until the guide is done, Finish is pressed, the camera is lost, or Ctrl-C.

    The last two are raised if no view has been taken.
    """
    detected, guide, detector = CameraViews(board), Guide(board, until_px=until_px), Detector(board)
    line, missed, empty_s = "", 0, 0.0
    try:
        while not (page and page.finished.is_set()):
            if not reader.wait(0.25):
                empty_s += 0.25
                if empty_s > PICTURE_WAIT_S:
                    raise DeviceError(
                        "calibrate: no pictures arrive from the camera. Is another program using it?", retry=True
                    )
                continue
            empty_s = 0.0
            image = reader.newest().image
            reader.clear()
            gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            corners = detector.find(gray, thorough=False)
            missed = missed + 1 if isinstance(corners, str) else 0
            if missed == MISMATCH_AFTER and (words := detector.mismatch([gray])) is not None:
                print(f"\n  {words}", flush=True)
            advice = guide.offer(corners, gray)
            if advice.taken:
                add(detected, guide.views[-1].name, gray, corners)
            line = _print_advice(advice, line)
            if page:
                page.show(advice, image, None if isinstance(corners, str) else corners.pixels)
            if advice.done:
                break
    except (KeyboardInterrupt, DeviceError) as ended:
        if not detected.views:
            raise
        if isinstance(ended, DeviceError):
            print(f"\n  {ended} Continuing with the views so far.", end="")
    print(flush=True)
    return detected


def _print_advice(advice: Advice, before: str) -> str:
    """One line that is overwritten in a terminal, or one line per change elsewhere."""
    line = advice.line
    if line != before:
        end = "" if sys.stdout.isatty() else "\n"
        print(("\r\x1b[K  " if sys.stdout.isatty() else "  ") + line, end=end, flush=True)
    return line


class Page:
    """The guide's page: the picture, where to hold the board next, the covered area, the progress."""

    def __init__(self, port: int) -> None:
        self.finished = threading.Event()
        self._newest = "{}"
        self._server = PageServer(
            HTML.read_text(encoding="utf-8"),
            host="127.0.0.1",
            port=port,
            token=None,
            on_connect=lambda: [("guide", self._newest)],
            on_message=self._handle_request,
            option="--page",
        )
        self._server.start()

    @property
    def url(self) -> str:
        return self._server.url

    def show(self, advice: Advice, image: np.ndarray, pixels: np.ndarray | None) -> None:
        self._newest = json.dumps(state(advice, (image.shape[1], image.shape[0]), pixels))
        self._server.send("guide", self._newest)
        if self._server.wants_picture:
            self._server.send_picture("picture", lambda: _jpeg(image))

    def stop(self) -> None:
        self._server.stop()

    def _handle_request(self, text: str) -> str | None:
        try:
            request = json.loads(text)
        except ValueError:
            return None
        if isinstance(request, dict) and request.get("do") == "finish":
            self.finished.set()
        return None


def state(advice: Advice, size: tuple[int, int], pixels: np.ndarray | None) -> dict[str, Any]:
    """The message for the page, as JSON: coordinates are shares of the picture."""

    def shares(points: np.ndarray | None) -> list[list[float]]:
        return [] if points is None else np.round(points / size, 4).tolist()

    known = np.isfinite(advice.sigma_px)
    return {
        "type": "guide",
        "taken": advice.taken,
        "reason": advice.reason,
        "hint": advice.hint,
        "views": advice.views,
        "sigma_px": round(float(advice.sigma_px), 3) if known else None,
        "until_px": advice.until_px,
        "covered": advice.covered.astype(int).tolist(),
        "outline": shares(advice.outline),
        "corners": shares(pixels),
        "done": advice.done,
        "aspect": size[0] / size[1],
    }


def _jpeg(image: np.ndarray) -> bytes:
    size = fit((image.shape[1], image.shape[0]), (SHOWN_WIDTH_PX, None))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if size[0] < image.shape[1] else image
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
