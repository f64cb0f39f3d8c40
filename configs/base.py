"""All fields of a config with their defaults; the other files of configs/ change some.

Not an experiment by itself. A config is plain data: `--config.train.steps=1000` sets a
field. An unknown field or a value of another type is an error.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """Return a complete config but for network.levels, which each experiment sets."""
    config = ConfigDict()
    config.seed = 0
    config.task = "diffusion"  # what is trained: vdm_jax/training/tasks.py TASKS
    config.init_from = ""  # workdir whose EMA parameters a new run starts from
    # Patterns of parameter paths: those that the workdir lacks start new, and those of
    # more input channels than its own get zeros for the others.
    config.init_new = ()
    config.init_widen = ()

    config.video = dict(frames=16, height=64, width=64, channels=3, fps=8.0)

    config.data = dict(
        source="folder",  # "shapes", "bouncing", "clips", "folder" or "tfds"
        path="",  # folder of videos; names of clips; data_dir of TFDS
        tfds_name="",
        batch_size=128,  # over all devices and processes
        joint_image_frames=0,  # independent images added to each video (VDM, section 3)
        stride=1,  # source frames from one frame of a clip to the next
        target_fps=0.0,  # or resample every file to this rate; 0 keeps its own
        flip=False,  # mirror half of the clips
        held_out_combinations=0,  # labels of "shapes" that are not trained on
        crop="center",  # or "random"
        validation_fraction=0.1,  # of the files, never trained on
        workers=0,  # loading processes; 0 loads in threads of this process
        text_embeddings_dir="",  # folder of caption embeddings, by vdm_jax.text
        cache_dir="",  # of decoded clips; "" is ~/.cache/vdm_jax
        cache_gib=4.0,
        max_bad_fraction=0.2,  # of unusable files, above which the run stops
        # Filled in from the data if None:
        label_vocabulary=placeholder(tuple),  # one tuple of names per label attribute
        mean=placeholder(float),  # of the pixels in [-1, 1]
        variance=placeholder(float),
    )

    # What is diffused: pixels, or what vdm_jax/codec.py CODECS makes of them.
    config.codec = dict(kind="identity")  # or "patch"

    config.network = dict(
        kind="unet",  # vdm_jax/networks/__init__.py NETWORKS
        levels=(),  # dict(channels, blocks, layers=(names, after each block))
        mid_layers=("spatial_attention", "temporal_attention"),
        head_dim=64,
        patch_size=1,  # of the space-to-depth stem; 1 is a 3x3 convolution
        skip_downsamples=True,  # one more block per level in the decoder (VDM)
        relative_position="shaw",  # or "bias"; of temporal attention
        dropout=0.0,
        remat="none",  # "full" or "dots" recompute activations to save memory
        dtype="float32",  # of convolutions and products; "bfloat16" on accelerators
    )

    config.conditioning = dict(
        cond_dim=1024,
        cond_mlp_layers=2,
        label_dropout=0.0,  # above 0 for classifier-free guidance
        attribute_dropout=0.0,  # of single attributes of the label
        frame_index_embedding=False,  # else the network knows relative time only
        text_dim=0,  # of token embeddings; 0 is no text
        text_encoder="",  # filled in from data.text_embeddings_dir
        text_encoder_sha256="",  # of its weights; filled in as well
        text_dropout=0.0,
        guidance_range=(),  # scales that a guided student was distilled for
    )

    # Stages of a cascade; video has the size of the stage's output.
    config.stage = dict(
        kind="base",  # or "tsr", "ssr": temporal or spatial super-resolution
        factor=1,  # output frames (tsr), height and width (ssr) over those of the input
        temporal_fill="repeat",  # or "blank": between the input frames of "tsr"
        augmentation_time=(0.0, 1.0),  # range of cosine times of the noise on the input
        train_crop=(),  # (height, width) of random crops in training
    )

    config.diffusion = dict(
        logsnr_min=-20.0,
        logsnr_max=20.0,
        schedule="cosine",  # or "interpolated", "linear", "flow", "karras"
        logsnr_shift=0.0,  # negative is noisier
        noise_logsnr_shift=0.0,  # of "interpolated", at t = 1; logsnr_shift at t = 0
        train_logsnr_shifts=(),  # alternate over the batch in training; () is one
        prediction_type="v",  # or "eps", "x", "flow"
        distilled_steps=0,  # sampling steps of a distilled student; 0 is any number
        precondition=False,  # by the data's mean and variance; v prediction only
        loss_weighting="snr_plus_one",  # diffusion/losses.py WEIGHTINGS
    )

    config.train = dict(
        steps=100_000,
        optimizer="adam",  # or "muon": fewer steps, a larger learning rate
        learning_rate=3e-4,
        warmup=1000,  # steps
        lr_schedule="cosine",  # or "linear"
        end_lr_fraction=1.0,  # learning rate at the end over the peak; 1 is constant
        b1=0.9,
        b2=0.99,
        weight_decay=0.0,
        grad_clip_norm=1.0,  # global norm
        ema_decay=0.9999,  # 0 keeps no average
        grad_accum_steps=1,  # parts of a batch whose gradients are averaged
        trainable=((".*", True),),  # (path pattern, trains): the first match decides
        checkpoint_every=1000,
        keep_checkpoints=3,
        log_every=50,
        sample_every=1000,  # 0 never samples
        eval_every=1000,  # validation loss; 0 never evaluates
        max_nonfinite_updates=10,  # skipped in a row, before the run stops
    )

    config.mesh = mesh()

    config.sample = dict(
        num=16,
        steps=256,
        sampler="ancestral",  # or "ddim", "dpm", "heun", "stochastic"
        ancestral_gamma=0.1,  # interpolates the variance of the ancestral sampler
        s_churn=0.0,  # S_churn of Heun's sampler (EDM)
        langevin_delta=0.0,  # of a Langevin corrector step after each step; 0 is off
        sampling_schedule="",  # "": the model's own, for dpm and heun "karras"
        guidance_scale=1.0,  # s of uncond + s (cond - uncond); 1 is off
        # Or interval:LOW:HIGH (logsnr), oscillating:LOW:FIRST, frames:FIRST.
        guidance_schedule="constant",
        cfg_mode="linear",  # or "rescaled", "projected"
        clip_x=1.0,  # bound on |x| at every step; 0 is off
        dynamic_threshold=0.0,  # percentile of |x|, as 99.5, instead; 0 is off
        # w_r of reconstruction guidance; 0 only replaces. None: 9 for observed frames
        # and pixels, 1 for an observed low-resolution video.
        reconstruction_weight=placeholder(float),
        reconstruction_schedule="constant",  # or "exact": grows towards the noise
        augmentation_snr=5.0,  # SNR of a stage's low-resolution input; inf is clean
        tiled_sampling=False,  # overlapping tiles of the size of stage.train_crop
        label="",  # names separated by commas; "" draws labels, "none" leaves them open
        batch_size=16,
    )
    return config


def mesh() -> dict:
    """Return the mesh of devices and how arrays are split over it: sharding.py."""
    return dict(
        data=-1,  # devices of the axis that replicates parameters; -1: all others
        fsdp=1,  # of the axis that splits them
        # Logical axis of activations -> mesh axes that split it, None for none.
        activation_rules=(
            ("batch", ("data", "fsdp")),
            ("frames", None),
            ("height", None),
            ("width", None),
            ("channel", None),
        ),
        # Pattern of parameter paths -> mesh axes that split the largest axis that they
        # divide; the first match decides.
        param_rules=((".*(kernel|embedding)", "fsdp"), (".*", None)),
    )


def distillation() -> ConfigDict:
    """Return a complete config of distill.py; other fields are the teacher's."""
    config = ConfigDict()
    config.seed = 0

    config.distill = dict(
        # Steps of the teacher's sampler, a power of two; each round halves them. With
        # sampler="stochastic", whose steps are double, the teacher takes half as many.
        start_steps=1024,
        end_steps=8,  # of the last student
        guidance_range=(),  # lowest and highest scale s of the student; () is unguided
        sampler="ddim",  # of the students; or "stochastic", with double steps
        loss_weighting="snr_plus_one",  # diffusion/losses.py WEIGHTINGS
        # First round of a guided distillation, which learns both branches in one:
        guidance_updates=50_000,
        guidance_lr=1e-4,
        updates_per_round=50_000,
        updates_last_rounds=100_000,  # of the rounds to 2 steps and to 1
        # Training times are u^time_power for uniform u. Above 1 the last sampling steps
        # are trained more often, whose errors no later step corrects; 1 is the papers'.
        time_power=1.0,
        # "r2_to_teacher" compares videos of the same noise with the teacher's: 1 for
        # equal videos, 0 for their mean. "shape_accuracy" is for moving shapes.
        metric="r2_to_teacher",
        num=256,  # videos for the metric
        max_metric_drop=0.1,  # in one round, above which the run stops
    )

    # The teacher's batch_size if 0, its path and text_embeddings_dir if "".
    config.data = dict(batch_size=128, workers=0, path="", text_embeddings_dir="")

    train = base().train.to_dict()
    for name in ("steps", "sample_every", "eval_every"):
        del train[name]
    config.train = dict(
        train,
        learning_rate=1e-4,
        warmup=0,
        lr_schedule="linear",  # within each round
        end_lr_fraction=0.0,
        ema_decay=0.0,
    )

    config.mesh = mesh()
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Set the tiny sizes that all `:smoke` variants share; they run in seconds."""
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
