"""Evaluation of folders of videos."""

import json

import av
import numpy as np
import pytest
from PIL import Image

from tests.metrics.cheap_networks import CheapNetworks, drifting_squares
from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.evaluators import folders
from vdm_jax.evaluators.reports import ReportOptions
from vdm_jax.video_io import FrameSelection, decode


def damage(path, packet):
    """Overwrite a frame of an mp4 with other bytes; its index stays as it is."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[packet].pos, packets[packet].size
    data = bytearray(path.read_bytes())
    data[place + 4 : place + size] = bytes((37 * i + 11) % 256 for i in range(size - 4))
    path.write_bytes(data)


class InProcess:
    """A SandboxedDecoder without its process, which takes long to start."""

    inspect = staticmethod(decode.inspect)
    read_frames = staticmethod(video_io.read_frames)

    def close(self):
        pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SandboxedDecoder", InProcess)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    videos = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 8, 3), dtype=np.uint8)
    for number, video in enumerate(videos):
        video_io.write_video(tmp_path / "videos" / f"v{number}.mp4", video, 8, scale=4)
    return tmp_path / "videos"


def read(folder, num):
    return folders.read_videos(folder, num, FrameSelection(8), size=(8, 8))


def test_a_damaged_file_is_named_and_another_takes_its_place(folder, capsys):
    whole, _, fps = read(folder, 4)
    assert whole.shape == (4, 8, 8, 8, 3) and fps == 8
    order = [int(i) for i in np.random.default_rng(0).permutation(4)]
    damage(folder / f"v{order[0]}.mp4", 3)
    clips, encoding, _ = read(folder, 2)
    assert encoding == "files" and (clips == whole[1:3]).all()
    assert f"  v{order[0]}.mp4: at frame " in capsys.readouterr().out
    for number in range(4):
        damage(folder / f"v{number}.mp4", 3)
    with pytest.raises(
        UserError, match="none of 4 videos can be used; 4 for the same reas"
    ):
        read(folder, 2)


def test_a_flat_video_keeps_a_row_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SandboxedDecoder", InProcess)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "videos" / "flat").mkdir(parents=True)
    strip = np.arange(2000, dtype=np.uint8).repeat(2).reshape(1, 2000, 2)
    picture = Image.fromarray(strip.transpose(0, 2, 1)[0])
    for number in range(2):
        picture.save(tmp_path / "videos" / "flat" / f"{number}.png")
    clips, _, _ = folders.read_videos(
        tmp_path / "videos", 1, FrameSelection(2), size=None
    )
    assert clips.shape == (1, 2, 1, 224, 3)


def test_a_folder_of_samples_against_a_folder_of_files(tmp_path, capsys):
    clips = drifting_squares()
    real, own = tmp_path / "real", tmp_path / "own"
    for folder in (real, own):
        folder.mkdir()
    for i, clip in enumerate(clips[:12]):
        video_io.write_video(real / f"{i:02d}.mp4", clip, fps=8)
    (real / "notes.txt").write_text("not a video")
    np.savez(own / "samples.npz", videos=clips[20:28])
    report = ReportOptions(tmp_path / "out", commands=["evaluate"])
    options = dict(num=6, clip=FrameSelection(4, 2), size=None, seed=0)
    options["networks"] = CheapNetworks()
    results = folders.compare_folders(own, real, report, **options)
    protocol = results["protocol"]
    assert protocol["clips"] == 6 and protocol["size"] == "16x16"
    assert protocol["encoding"] == "pixels, reference files"
    assert {row["clips"] for row in results["networks"] + results["pixels"]} == {6}
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["pixels"][0]["closer_to_train"] is None  # without held-out clips
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Network metrics" in page and "global mean" in page
    assert "FVD" in capsys.readouterr().out

    def against_first(name: str) -> ReportOptions:
        return ReportOptions(tmp_path / name, baseline_reports=[tmp_path / "out"])

    again = folders.compare_folders(own, real, against_first("again"), **options)
    assert again["networks"] == results["networks"]
    other = folders.compare_folders(
        own, real, ReportOptions(tmp_path / "other"), **options | {"seed": 1}
    )
    assert other["networks"][0]["fvd"] != results["networks"][0]["fvd"]
    for i, clip in enumerate(clips[20:32]):  # another reference
        video_io.write_video(real / f"{i:02d}.mp4", clip, fps=8, overwrite=True)
    with pytest.raises(UserError, match="with real clips"):
        folders.compare_folders(own, real, against_first("not"), **options)
    with pytest.raises(UserError, match="with frames 4, this evaluation with 3"):
        folders.compare_folders(
            own, real, against_first("not"), **options | {"clip": FrameSelection(3, 2)}
        )
    assert not (tmp_path / "not").exists()
    with pytest.raises(UserError, match="--num_frames=4 at most"):
        folders.read_videos(own, 6, FrameSelection(5, 2), None)
    # The rate of the clips: every second frame of 8 a second.
    assert folders.read_videos(real, 6, FrameSelection(4, 2), None)[1:] == (
        "files",
        pytest.approx(4.0),
    )
    info = own / "samples.json"
    info.write_text('{"command": "c", "workdir": "w", "fps": 6}')
    assert folders.read_videos(own, 6, FrameSelection(4, 2), None)[1:] == (
        "pixels",
        3.0,
    )
    for text in ("[]", "{}", '{"command": "c", "workdir": "w", "fps": 0}'):
        info.write_text(text)
        with pytest.raises(UserError, match="is not what sample.py writes"):
            folders.read_videos(own, 6, FrameSelection(4, 2), None)
    drawn = [
        folders.read_videos(real, 3, FrameSelection(4, 1), None, seed)[0]
        for seed in (0, 1)
    ]
    assert (drawn[0] != drawn[1]).any()
