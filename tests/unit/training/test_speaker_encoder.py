"""The speaker encoder: its input equals that of its own front end, and its states those of the published network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: scripts/setup train")

from pipeline import assets  # noqa: E402
from pipeline.errors import AssetError  # noqa: E402
from pipeline.preprocessing import VOICE_FRAMES, voice_tensor  # noqa: E402
from pipeline.training.voice.speaker_encoder import ASSET, BANDS, WINDOW, SpeakerEncoder  # noqa: E402

RATE_HZ, HOP = 16_000, 160


def sound(gain: float = 1.0) -> npt.NDArray[np.float32]:
    """Three seconds as loud as speech, every half second of another colour."""
    generator, parts = np.random.default_rng(0), []
    for smooth in (1, 3, 9, 2, 5, 1):
        white = generator.normal(0, 0.1, RATE_HZ // 2 + smooth - 1)
        parts.append(np.convolve(white, np.ones(smooth) / smooth, "valid"))
    return (gain * np.concatenate(parts)).astype(np.float32)


def windows(samples: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None = None) -> torch.Tensor:
    return torch.from_numpy(voice_tensor(samples, np.ones(len(samples), bool) if valid is None else valid)[None])


def own_front_end(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(columns, 40) as Resemblyzer has librosa make them: at -30 dB of full scale, Slaney's triangles, power, no
    logarithm.
    """
    samples = samples * 10 ** (-30 / 20) / np.sqrt(np.mean(samples**2))
    columns = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] * np.hanning(WINDOW + 1)[:-1]
    mels = np.linspace(0, 15 + np.log(8) * 27 / np.log(6.4), BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
    hz = np.fft.rfftfreq(WINDOW, 1 / RATE_HZ)[:, None]
    rising, falling = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.abs(np.fft.rfft(columns)) ** 2 @ (
        np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    )


def test_powers_are_those_of_the_encoders_own_front_end_within_a_decibel() -> None:
    ours = SpeakerEncoder().powers(windows(sound()))[0].numpy()
    theirs = own_front_end(sound())
    for begin in range(0, 300, 50):  # noise flutters: what is compared is its mean over the half second
        columns = slice(begin + 5, begin + 45)
        db = 10 * np.log10(ours[columns].mean(axis=0) / theirs[columns].mean(axis=0))
        assert np.abs(np.median(db)) < 0.5 and np.percentile(np.abs(db), 90) < 2


def test_gain_has_no_effect_on_the_encoder() -> None:
    loud, quiet = (SpeakerEncoder().powers(windows(sound(gain))) for gain in (1.0, 0.2))
    assert torch.allclose(loud, quiet, rtol=1e-2, atol=float(loud.max()) * 1e-4)


def test_invalid_columns_are_silence_and_do_not_count_for_the_level() -> None:
    valid = np.ones(3 * RATE_HZ, bool)
    valid[: 2 * RATE_HZ] = False
    powers = SpeakerEncoder().powers(windows(sound(), valid))[0].numpy()
    assert not powers[:200].any()
    db = 10 * np.log10(powers[210:].mean() / own_front_end(sound()[2 * RATE_HZ :])[10:].mean())
    assert abs(db) < 1


def test_no_valid_column_gives_finite_states() -> None:
    assert torch.isfinite(SpeakerEncoder()(torch.zeros(2, 2, 64, VOICE_FRAMES))).all()


def test_states_are_those_of_the_published_network() -> None:
    try:
        stored = torch.load(assets.path(ASSET), map_location="cpu", weights_only=True)["model_state"]
    except AssetError as error:
        pytest.skip(f"the encoder cannot be fetched: {error}")
    published = torch.nn.LSTM(BANDS, 256, 3, batch_first=True)
    published.load_state_dict(
        {name.removeprefix("lstm."): one for name, one in stored.items() if name.startswith("lstm.")}
    )
    encoder, inputs = SpeakerEncoder.published(), windows(sound())
    with torch.no_grad():
        over_time, (last, _) = published(encoder.powers(inputs)[:, -encoder.COLUMNS :])
        states = encoder(inputs)
    assert states.shape == (1, encoder.MEASURES)
    for layer in range(3):
        assert torch.allclose(states[:, layer * 512 : layer * 512 + 256], last[layer], atol=1e-6)
    assert torch.allclose(states[:, -256:], over_time.mean(1), atol=1e-6)
