"""Folders of anybody's videos, read for a measurement."""

import av
import numpy as np
import pytest
from PIL import Image

from vdm_jax import video_io
from vdm_jax.errors import UserError
from vdm_jax.evaluators import folders


def damage(path, packet):
    """Overwrite a frame of an mp4 with other bytes; its index stays as it is."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        place, size = packets[packet].pos, packets[packet].size
    data = bytearray(path.read_bytes())
    data[place + 4 : place + size] = bytes((37 * i + 11) % 256 for i in range(size - 4))
    path.write_bytes(data)


class InProcess:
    """A Guard without its children, which take long to start."""

    inspect = staticmethod(video_io.inspect)
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
    return folders.read_videos(folder, num, frames=8, stride=1, size=(8, 8))


def test_a_damaged_file_is_named_and_another_takes_its_place(folder, capsys):
    whole, _, fps = read(folder, 4)
    assert whole.shape == (4, 8, 8, 8, 3) and fps == 8
    order = [int(i) for i in np.random.default_rng(0).permutation(4)]
    damage(folder / f"v{order[0]}.mp4", 3)
    clips, how, _ = read(folder, 2)
    assert how == "files" and (clips == whole[1:3]).all()
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
        tmp_path / "videos", 1, frames=2, stride=1, size=None
    )
    assert clips.shape == (1, 2, 1, 224, 3)
