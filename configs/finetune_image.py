"""Tune a folder of diffusers, or another image model, on your own pictures.

    python -m vdm_jax.text --captions=PICTURES --out=TEXT \
        --text_encoder=DIR/text_encoder
    python train.py --config=configs/finetune_image.py --config.init_from=DIR \
        --config.data.path=PICTURES --config.data.text_embeddings_dir=TEXT \
        --workdir=RUN
    python sample.py --workdir=RUN --prompt="a photo of my cat" --out=out

The model is that of DIR: its network, autoencoder, text and noise schedule. Captions
are dropped for one picture in ten. Result: depends on the pictures; run with random
weights only.
Variants: the default fits one GPU of 40 GB; `:lora` trains a LoRA of rank 8 alone
(docs/stable_diffusion.md); `:smoke` and `:lora_smoke` take seconds with a small model.
"""

from ml_collections import ConfigDict

from configs.base import tuning

VARIANTS = ("", "lora", "smoke", "lora_smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the locked config of a variant; it has no network, which is DIR's."""
    config = tuning()
    config.video.frames = 1
    config.data.update(batch_size=4, validation_fraction=0.0)
    config.train.update(
        steps=2000,
        learning_rate=1e-5,
        b2=0.999,
        weight_decay=0.01,
        warmup=100,
        ema_decay=0.999,
        checkpoint_every=500,
        sample_every=500,
        eval_every=0,
    )
    if "lora" in variant:
        config.network.lora_rank = 8
        # An average would be a second copy of the frozen parameters.
        config.train.update(learning_rate=1e-4, ema_decay=0.0)
    if "smoke" in variant:
        config.data.batch_size = 2
        config.train.update(
            steps=4, warmup=1, checkpoint_every=2, log_every=2, sample_every=4
        )
        config.sample.update(num=2, steps=2)
    return config.lock()
