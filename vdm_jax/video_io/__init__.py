"""Reading and writing of videos: all of PyAV and Pillow lives in this room."""

from vdm_jax.video_io.cache import FrameCache, IndexStore
from vdm_jax.video_io.decode import (
    cover_size,
    crop,
    frames,
    inspect,
    is_flat,
    probe,
    read,
    read_frames,
    read_picture,
    resize,
)
from vdm_jax.video_io.files import BadVideo, slug
from vdm_jax.video_io.info import VideoInfo, clip, cost, describe, starts
from vdm_jax.video_io.write import (
    claim,
    display_scale,
    enlarge,
    read_npz,
    tile,
    write_all,
    write_gif,
    write_npz,
    write_sheet,
    write_video,
)

__all__ = [
    "BadVideo",
    "FrameCache",
    "IndexStore",
    "VideoInfo",
    "claim",
    "clip",
    "cost",
    "cover_size",
    "crop",
    "describe",
    "display_scale",
    "enlarge",
    "frames",
    "inspect",
    "is_flat",
    "probe",
    "read",
    "read_frames",
    "read_npz",
    "read_picture",
    "resize",
    "slug",
    "starts",
    "tile",
    "write_all",
    "write_gif",
    "write_npz",
    "write_sheet",
    "write_video",
]
