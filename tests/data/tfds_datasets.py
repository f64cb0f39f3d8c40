"""Small data sets that TFDS prepares in the tests, without tensorflow."""

import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

core = pytest.importorskip("tensorflow_datasets")
F = core.features

CLIPS = [  # of 6, 7, ... frames, at the size of the config
    np.random.default_rng(i).integers(0, 256, (6 + i, 8, 12, 3), np.uint8)
    for i in range(9)
]
TENSOR = F.Tensor(shape=(None, 8, 12, 3), dtype=np.uint8)
IMAGES = F.Sequence(F.Image(shape=(8, 12, 3), encoding_format="png"))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file


def images(clip):
    return [png(frame) for frame in clip]


def write(
    folder,
    name,
    features,
    make,
    splits=(("train", 9),),
    file_format="array_record",
    shards=1,
):
    """Let TFDS prepare a data set; example i of every split is make(i)."""

    class Builder(core.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.core.Version("1.0.0")
        code_path = None  # no checksums next to it

        def _info(self):
            return core.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                split: ((i, make(i)) for i in range(count)) for split, count in splits
            }

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    Builder(data_dir=folder, file_format=file_format).download_and_prepare(
        download_config=core.download.DownloadConfig(num_shards=shards)
    )
    return folder / name / "1.0.0"


def config(folder, name, frames=4, **changes):
    made = ConfigDict(
        {
            "seed": 0,
            "video": {"frames": frames, "height": 8, "width": 12, "channels": 3},
            "data": {
                "path": str(folder),
                "tfds_name": name,
                "batch_size": 2,
                "joint_image_frames": 0,
                "stride": 1,
                "target_fps": 0.0,
                "flip": False,
                "crop": "center",
                "workers": 0,
                "max_bad_fraction": 0.2,
                "mean": None,
                "variance": None,
                "validation_fraction": 0.25,
            },
        }
    )
    for field, value in changes.items():
        made["video" if field in made.video else "data"][field] = value
    return made.lock()


STORAGES = {
    "raw": (TENSOR, lambda clip: clip),
    "bytes": (
        F.Tensor(shape=(None, 8, 12, 3), dtype=np.uint8, encoding="bytes"),
        lambda clip: clip,
    ),
    "images": (IMAGES, images),
}


def load_all(source, frames=4, seed=0):
    rngs = (np.random.default_rng((seed, i)) for i in range(len(source)))
    return [source.load(i, rng, frames) for i, rng in enumerate(rngs)]


def find_clip(video, clip, stride=1):
    """Return the first frame of a clip within a video, or None."""
    span = (len(video) - 1) * stride + 1
    for start in range(len(clip) - span + 1):
        if (clip[start : start + span : stride] == video).all():
            return start
    return None


def change_features(directory, change):
    path = directory / "features.json"
    content = json.loads(path.read_text())
    change(content["featuresDict"]["features"])
    path.write_text(json.dumps(content))


def write_every_storage(root):
    """Write one data set of every storage; "raw" has a test split too."""
    label = F.ClassLabel(names=["ape", "bee", "cat"])
    for storage, (video, encode) in STORAGES.items():
        write(
            root,
            storage,
            F.FeaturesDict({"video": video, "label": label, "caption": F.Text()}),
            lambda i, encode=encode: {
                "video": encode(CLIPS[i]),
                "label": i % 3,
                "caption": f"clip {i}",
            },
            splits=(("train", 9),) + ((("test", 3),) if storage == "raw" else ()),
        )
