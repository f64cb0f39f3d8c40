"""Frame numbers of clips: vdm_jax/video_io/info.py."""

import numpy as np
import pytest

from tests.video_io.samples import (
    FRAMES,
    GOP,
    VIDEO,
    encode,
    make_file,
)
from vdm_jax import video_io
from vdm_jax.video_io import BadVideo, FrameSelection


def test_seek_cost_is_the_mean_number_of_decoded_frames(videos):
    info, span = video_io.probe(videos["dense.mp4"]), 5
    assert info.keyframes.tolist() == [0, 8, 16, 24]
    brute = [s % GOP + span for s in range(FRAMES - span + 1)]
    assert FrameSelection(span).seek_cost(info) == pytest.approx(np.mean(brute))


TIMES_MS = np.cumsum([0] + [40, 40, 80, 20] * 6)[:FRAMES].tolist()


@pytest.fixture(scope="module", params=["mp4", "matroska"])
def variable_rate_video(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vfr") / "vfr.video"
    video = VIDEO[: len(TIMES_MS)]
    encode(str(path), request.param, "libx264", GOP, {}, video, 1000, TIMES_MS)
    return path


def test_a_variable_frame_rate_is_detected(variable_rate_video):
    info = video_io.probe(variable_rate_video)
    assert info.variable and info.frames == len(TIMES_MS)
    np.testing.assert_allclose(info.times, np.array(TIMES_MS) / 1000, atol=1e-3)
    assert "variable" in FrameSelection(1).describe(info)


@pytest.mark.parametrize("fps", [5.0, 8.0, 12.5, 20.0])
def test_a_target_rate_selects_the_nearest_frames(variable_rate_video, fps):
    info = video_io.probe(variable_rate_video)
    count = 5
    clip = FrameSelection(count, fps=fps)
    room = clip.num_starts(info)
    assert 0 < room < info.frames
    for start in (0, 3, room - 1):
        wanted = info.times[start] + np.arange(count) / fps
        brute = [int(np.abs(info.times - time).argmin()) for time in wanted]
        assert clip.frame_numbers(info, start).tolist() == brute
        assert wanted[-1] <= info.times[-1] + 0.5 / info.fps
    assert clip.frame_numbers(info, room).max() == info.frames - 1
    assert f"nearest to {fps:g} fps" in clip.describe(info)


def test_a_rate_within_one_percent_selects_every_frame(videos):
    info = video_io.probe(videos["dense.mp4"])
    near = FrameSelection(6, fps=25.1).frame_numbers(info, 2)
    assert near.tolist() == [2, 3, 4, 5, 6, 7]
    half = FrameSelection(3, fps=12.5)
    assert half.frame_numbers(info, 2).tolist() == [2, 4, 6]
    with pytest.raises(BadVideo, match="25 frames per second are below the 30"):
        FrameSelection(6, fps=30).num_starts(info)


@pytest.mark.parametrize("stride", [1, 3])
def test_clips_fit_at_every_start_and_at_no_later_frame(videos, stride):
    info, count = video_io.probe(videos["dense.mp4"]), 4
    clip = FrameSelection(count, stride)
    room = clip.num_starts(info)
    assert clip.frame_numbers(info, room - 1)[-1] == info.frames - 1
    with pytest.raises(BadVideo, match="too short: 26 frames, a clip spans 31 frames"):
        FrameSelection(31).num_starts(info)


def test_one_frame_is_too_short_for_a_clip(tmp_path):
    path = make_file(tmp_path, "a.mkv", video=VIDEO[:1])
    info = video_io.probe(path)
    assert (info.frames, info.fps, info.duration) == (1, None, None)
    assert FrameSelection(1).num_starts(info) == 1
    with pytest.raises(BadVideo, match="too short: 1 frame, a clip spans 2"):
        FrameSelection(2).num_starts(info)
