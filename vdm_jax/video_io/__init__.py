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
    read_image,
    resize,
)
from vdm_jax.video_io.files import BadVideo, slug
from vdm_jax.video_io.info import (
    VideoInfo,
    clip_frames,
    describe_frame_selection,
    num_starts,
    seek_cost,
)
from vdm_jax.video_io.write import (
    check_output_folder,
    display_scale,
    read_npz,
    repeat_pixels,
    video_grid,
    write_gif,
    write_npz,
    write_samples,
    write_sheet,
    write_video,
)

__all__ = [
    "BadVideo",
    "FrameCache",
    "IndexStore",
    "VideoInfo",
    "check_output_folder",
    "clip_frames",
    "seek_cost",
    "cover_size",
    "crop",
    "describe_frame_selection",
    "display_scale",
    "repeat_pixels",
    "frames",
    "inspect",
    "is_flat",
    "probe",
    "read",
    "read_frames",
    "read_npz",
    "read_image",
    "resize",
    "slug",
    "num_starts",
    "video_grid",
    "write_samples",
    "write_gif",
    "write_npz",
    "write_sheet",
    "write_video",
]
