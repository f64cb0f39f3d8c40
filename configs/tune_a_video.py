"""Tune an image model on one clip, to edit it by other prompts: Tune-A-Video.

    python train.py --config=configs/tune_a_video.py --config.init_from=models/sprites \
        --config.data.path=clip.mp4 --config.data.caption="a cat moves left" \
        --config.data.edited_caption="a dog moves left" --workdir=runs/tuned
    python edit.py --workdir=runs/tuned --edit=clip.mp4 --prompt="a dog moves left" \
        --out=out

The model is that of init_from, a folder of diffusers or an image model of kind "sd",
with the attention of Wu et al. 2022 (arXiv:2212.11565): to the first and the previous
frame, and over the frames at each pixel. The queries and the new attention train.
Previews are edits by data.edited_caption.
Result: experiments/tune_a_video, by the variant of models/sprites.
Variants: `:sprites` is for models/sprites, which learns next to nothing at the paper's
rate, and leaves frames empty where norms are over all of them. `:smoke` takes seconds
with a small model.
"""

from ml_collections import ConfigDict

from configs.base import tuning

VARIANTS = ("", "sprites", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant; its network is that of init_from."""
    config = tuning()
    config.video.frames = 8
    config.data.update(
        source="one_clip",
        batch_size=1,
        validation_fraction=0.0,
    )
    config.network.update(temporal="tune", frame_reads="previous", joint_norms=True)
    config.init_new = (".*/time_(norm|attention)/.*",)
    config.train.update(
        trainable=(
            (".*/(self|cross)_attention/q/kernel", True),
            (".*/time_attention/.*", True),
            (".*", False),
        ),
        steps=300,
        learning_rate=3e-5,
        end_lr_fraction=1.0,
        b2=0.999,
        weight_decay=0.01,
        warmup=0,
        ema_decay=0.0,
        checkpoint_every=100,
        log_every=20,
        sample_every=100,
        eval_every=0,
    )
    if variant == "sprites":
        config.network.joint_norms = False
        config.train.learning_rate = 1e-3
        config.sample.guidance_scale = 2.0
    if variant == "smoke":
        config.train.update(steps=4, checkpoint_every=2, log_every=2, sample_every=4)
        config.sample.update(num=1, steps=2)
    return config.lock()
