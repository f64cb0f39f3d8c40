"""Reading and writing of video files, with PyAV and Pillow: these are its names."""

# ruff: noqa: F401

from vdm_jax.video_io.decode import (
    cover_size,
    crop,
    decode_frames,
    is_flat,
    probe,
    read_frames,
    read_image,
    resize,
    to_gray,
)
from vdm_jax.video_io.file_types import BadVideo
from vdm_jax.video_io.info import FrameSelection, VideoInfo
from vdm_jax.video_io.write import (
    check_output_folder,
    display_scale,
    read_npz,
    repeat_pixels,
    slug,
    video_grid,
    write_gif,
    write_npz,
    write_samples,
    write_sheet,
    write_video,
)
