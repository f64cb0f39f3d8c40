"""Every field of a config, with what it means: the experiments change some of them.

Not an experiment by itself. A config is plain data: `--config.train.steps=1000` changes
a field, an unknown field or a wrong type is refused.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """A complete config; the network's levels are the experiment's to fill in."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # workdir whose (EMA) parameters a new run starts from

    config.video = dict(frames=16, height=64, width=64, channels=3, fps=8.0)

    config.data = dict(
        source="folder",  # "shapes", "bouncing", "clips", "folder", "tfds"
        path="",  # folder of videos; names of clips; TFDS data_dir
        tfds_name="",
        batch_size=128,  # over all devices and processes
        joint_image_frames=0,  # independent frames added to each video (VDM, section 3)
        stride=1,  # source frames from one frame of a clip to the next
        target_fps=0.0,  # or: re-time every file to this rate; 0 keeps its own
        flip=False,  # mirror half of the clips
        held_out_combinations=0,  # labels of "shapes" that only its held-out part has
        crop="center",  # or "random"
        validation_fraction=0.1,  # share of the files never trained on
        workers=0,  # loading processes; 0 loads in threads of this one
        text_embeddings_dir="",  # of the captions: a folder that vdm_jax.text wrote
        cache_dir="",  # of decoded clips; "" is ~/.cache/vdm_jax
        cache_gib=4.0,
        max_bad_fraction=0.2,  # of unusable files, before the run stops
        # Filled in from the data where left open:
        label_vocabulary=placeholder(
            tuple
        ),  # label vocabulary, one tuple of names an attribute
        mean=placeholder(float),  # of the pixels in [-1, 1]
        variance=placeholder(float),
    )

    config.network = dict(
        levels=(),  # dict(channels, blocks, mixing=(parts after each block, ...))
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=64,
        patch_size=1,  # space-to-depth stem; 1 is a 3x3 convolution
        skip_downsamples=True,  # one block more on the way up than down (VDM)
        relative_position="shaw",  # or "bias": in temporal attention
        dropout=0.0,
        remat="none",  # "full" or "dots" trade compute for memory
        dtype="float32",  # of convolutions and products; "bfloat16" on accelerators
    )

    config.conditioning = dict(
        cond_dim=1024,
        cond_mlp_layers=2,
        label_dropout=0.0,  # share of examples without label: classifier-free guidance
        attribute_dropout=0.0,  # share of single attributes left open
        frame_index_embedding=False,  # tell each frame its number, not only relative time
        text_dim=0,  # of text token embeddings; 0 is no text
        text_encoder="",  # that made them; filled in from data.text_embeddings_dir
        text_encoder_sha256="",  # of its weights; filled in too
        text_dropout=0.0,
        guidance_range=(),  # of weights that a guided student is told: distill.py's
    )

    # What of a cascade a model is: the video's size is what it makes.
    config.stage = dict(
        kind="base",  # or "tsr", "ssr": more frames, or larger ones, of a given video
        factor=1,  # of the frames, or of height and width
        temporal_fill="repeat",  # between the given frames of "tsr"; or "blank"
        augmentation_time=(
            0.0,
            1.0,
        ),  # on the given video in training: cosine times, drawn between
        train_crop=(),  # (height, width) trained on, of larger clips
    )

    config.diffusion = dict(
        logsnr_min=-20.0,
        logsnr_max=20.0,
        schedule="cosine",  # or "interpolated", "linear", "flow", "karras"
        logsnr_shift=0.0,  # of logsnr; negative is noisier
        noise_logsnr_shift=0.0,  # of "interpolated": at the noise; `shift` at the data
        train_logsnr_shifts=(),  # in training examples take turns among these; () is shift
        prediction_type="v",  # of the network; or "eps", "x", "flow"
        distilled_steps=0,  # that a student was distilled for; 0 is any number
        precondition=False,  # by the data's mean and variance, v outputs only
        loss_weighting="snr_plus_one",  # diffusion/losses.py WEIGHTINGS
    )

    config.train = dict(
        steps=100_000,
        optimizer="adam",  # or "muon": fewer steps, a larger learning rate
        learning_rate=3e-4,
        warmup=1000,  # steps
        lr_schedule="cosine",  # or "linear"
        end_lr_fraction=1.0,  # share of the rate left at the end of the decay; 1 is constant
        b1=0.9,
        b2=0.99,
        weight_decay=0.0,
        grad_clip_norm=1.0,  # global norm of the gradient
        ema_decay=0.9999,
        grad_accum_steps=1,  # parts of a batch whose gradients are averaged
        trainable=((".*", True),),  # (path pattern, trains): the first match decides
        checkpoint_every=1000,
        keep_checkpoints=3,
        log_every=50,
        sample_every=1000,
        eval_every=1000,
        max_nonfinite_updates=10,  # skipped updates in a row before the run stops
    )

    config.mesh = dict(data=-1, fsdp=1)  # -1: all the devices that fsdp leaves

    config.sample = dict(
        num=16,
        steps=256,
        sampler="ancestral",  # or "ddim", "dpm", "heun", "stochastic"
        ancestral_gamma=0.1,  # of the ancestral sampler's variance
        s_churn=0.0,  # of Heun's: S_churn of EDM
        langevin_delta=0.0,  # delta of a Langevin step after each step; 0 is off
        sampling_schedule="",  # of the steps; "": the model's own, for dpm and heun "karras"
        guidance_scale=1.0,  # s of uncond + s (cond - uncond); 1 is off
        # Or interval:LOW:HIGH (logsnr), oscillating:LOW:FIRST, frames:FIRST.
        guidance_schedule="constant",
        cfg_mode="linear",  # or "rescaled", "projected": how guidance mixes
        clip_x=1.0,  # clip x to +-this at every step; 0 is off
        dynamic_threshold=0.0,  # dynamic thresholding instead, as 99.5; 0 is off
        # w_r of reconstruction guidance; 0 is replacement alone. Left open, it is 9 of
        # given frames and pixels, 1 of a small version.
        reconstruction_weight=placeholder(float),
        reconstruction_schedule="constant",  # or "exact": grows towards the noise
        augmentation_snr=5.0,  # of the noise on what a stage of a cascade is given; inf is none
        tiled_sampling=False,  # overlapping tiles of the size that a stage's crops had
        label="",  # names, comma separated, one an attribute; "" draws them; "none"
        batch_size=16,
    )
    return config


def distillation() -> ConfigDict:
    """A complete config of distill.py; all else is the teacher's own config."""
    config = ConfigDict()
    config.seed = 0

    config.distill = dict(
        # Steps of the teacher's sampler, a power of two: the first student has half of
        # them. (Of a stochastic one, whose steps are double, the teacher takes half.)
        start_steps=1024,
        end_steps=8,  # of the last student
        guidance_range=(),  # lowest and highest scale s of the student; () is unguided
        sampler="ddim",  # of the students, or "stochastic", which knows double steps
        loss_weighting="snr_plus_one",  # diffusion/losses.py WEIGHTINGS
        # Of the first round of a guided distillation, which has more to learn:
        guidance_updates=50_000,
        guidance_lr=1e-4,
        updates_per_round=50_000,  # of a round
        updates_last_rounds=100_000,  # of the rounds to 2 steps and to 1, the hardest
        # How often the other rounds train their last steps, whose errors no later step
        # mends: times are u^late, u even; 1 is the papers' way.
        time_power=1.0,
        # What a round is judged by: "r2_to_teacher", the teacher from the same noise (1
        # is the same videos, 0 as far as their mean), or "joint", of moving shapes.
        metric="r2_to_teacher",
        num=256,  # videos behind the metric
        max_metric_drop=0.1,  # a round that loses more stops the run
    )

    # Of batch_size 0 means the teacher's, and so does "" of the others.
    config.data = dict(batch_size=128, workers=0, path="", text_embeddings_dir="")

    train = base().train.to_dict()
    for of_training in ("steps", "sample_every", "eval_every"):
        del train[of_training]
    config.train = dict(
        train,
        learning_rate=1e-4,
        warmup=0,
        lr_schedule="linear",  # within each round
        end_lr_fraction=0.0,
        ema_decay=0.0,
    )

    config.mesh = dict(data=-1, fsdp=1)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """The tiny shape that all `:smoke` variants share; runs in seconds."""
    config.video.update(frames=8, height=16, width=16)
    config.data.batch_size = 2
    config.network.update(
        levels=(
            dict(channels=8, blocks=1, layers=("temporal_conv",)),
            dict(
                channels=16,
                blocks=1,
                layers=("spatial_attention", "temporal_attention"),
            ),
        ),
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=8,
        patch_size=2,
        skip_downsamples=False,
        relative_position="bias",
        dropout=0.0,
        dtype="float32",
        remat="none",
    )
    config.conditioning.update(cond_dim=16, cond_mlp_layers=1)
    config.train.update(
        steps=4,
        warmup=1,
        checkpoint_every=2,
        log_every=2,
        sample_every=2,
        eval_every=4,
    )
    config.sample.update(num=2, steps=2, batch_size=8)
    return config
