"""Single frames of sprites and photographs."""

import numpy as np
import pytest

from configs import autoencoder
from tests.sprite_cases import needs_pictures
from vdm_jax import data
from vdm_jax.data import clips, pictures
from vdm_jax.errors import UserError

pytestmark = needs_pictures
MISSING = [n for n in clips.parse_names("published")
           if clips.FOOTAGE[n].asset.find() is None]  # fmt: skip


@pytest.fixture(scope="module")
def source():
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    return data.open_source(autoencoder.get_config("smoke"))


def load(source, index):
    return source.load(index, np.random.default_rng(index), 1)


def test_items_are_of_the_parts_in_turn(source):
    assert [part.name for part in source.parts] == [
        "sprites", "clips", "sprites", "clips", "sprites", "clips", "colours", "clips",
    ]  # fmt: skip
    assert [source.parts[i].geometry.frames for i in (0, 2, 4)] == [
        1, pictures.CLIP_FRAMES, 1,
    ]  # fmt: skip
    for index in range(16):
        clip = load(source, index)
        assert clip["video"].shape == (1, 32, 32, 3)
        assert (clip["caption"] == "a photograph") == (index % 2 == 1)
        assert (clip["video"].std((0, 1, 2)).max() == 0) == (index % 8 == 6)
        assert " moves " not in clip["caption"]
        assert "label" not in clip
    assert (load(source, 6)["video"] != load(source, 14)["video"]).any()


def test_the_held_out_part_has_other_photographs(source):
    held_out = source.split(True)
    of = [{tuple(item) for item in part.parts[1].items} for part in (source, held_out)]
    assert of[0] and of[1] and not of[0] & of[1]
    for index in (0, 2, 6):
        assert (load(source, index)["video"] != load(held_out, index)["video"]).any()
    again = held_out.split(False)
    assert again.parts == source.parts


def test_clips_are_refused():
    config = autoencoder.get_config("smoke").unlock()
    config.video.frames = 8
    with pytest.raises(UserError, match="config.video.frames=8: pictures are single"):
        data.open_source(config)
