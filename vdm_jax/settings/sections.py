"""The sections of a config: every setting with its default, meaning and range.

`python -m vdm_jax.settings` prints them as docs/settings.md. Other modules inherit from
a section where they need its fields, as `networks.spec.UNetSpec` from `UNet`.
"""

from dataclasses import MISSING, dataclass

from vdm_jax.settings.autoencoder import Autoencoder
from vdm_jax.settings.control import Control
from vdm_jax.settings.declaration import setting
from vdm_jax.settings.discrete import Discrete
from vdm_jax.settings.flow import FlowTimesteps
from vdm_jax.settings.mixed_sizes import MixedSizes

MANY = 2**31 - 1
MAX_SCALE = 1000  # of guidance
MAX_STEPS = "diffusion.samplers.MAX_STEPS"
SCHEDULES = "diffusion.schedules.SCHEDULES"
WEIGHTINGS = "diffusion.losses.WEIGHTINGS"
LAYERS = "networks.blocks.LAYERS"
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]


@dataclass(frozen=True)
class Seeded:
    """Fields outside of the sections."""

    seed: int = setting(0, "decides all that is random", 0, 2**32 - 1)


@dataclass(frozen=True)
class TopLevel(Seeded):
    """Fields outside of the sections."""

    task: str = setting("diffusion", "what is trained", choices="training.tasks.TASKS")
    init_from: str = setting("", "workdir whose EMA a new run starts from", path=True)
    init_checksum: str = setting(
        "", "of init_from, where a shipped model lacks its parameters; filled in"
    )
    init_new: tuple[str, ...] = setting(
        (), "patterns of the parameters that start new where init_from lacks them"
    )
    init_widen: tuple[str, ...] = setting(
        (), "patterns of the kernels that may have more inputs than init_from's"
    )


@dataclass(frozen=True)
class Video:
    """The videos of the model; a stage of a cascade has the size of its output."""

    frames: int = setting(16, "number of frames", 1, 4096)
    height: int = setting(64, "in pixels", 1, 16384)
    width: int = setting(64, "in pixels", 1, 16384)
    channels: int = setting(3, "3 is colour, 1 is grey", choices=(3, 1))
    fps: float = setting(8.0, "frames per second of the files written", 0.1, 240)


@dataclass(frozen=True)
class Files:
    """Where the data are, and how they are loaded."""

    path: str = setting(
        "",
        "folder of videos, latents or of TFDS; a clip; which clips or sprites",
        path=True,
    )
    text_embeddings_dir: str = setting(
        "", "caption embeddings of vdm_jax.text", path=True
    )
    latents_dir: str = setting(
        "", "latents to train from; path may name them, too", path=True
    )
    workers: int = setting(0, "loading processes; 0 loads in threads", 0, 1024)


@dataclass(frozen=True)
class Data(Files):
    """The data set and its batches."""

    source: str = setting("folder", "kind of data set", choices="data.SOURCES")
    caption: str = setting("", "what the clip of source one_clip shows")
    edited_caption: str = setting(
        "", "what the edits of this clip show that are its previews; '' is caption"
    )
    tfds_name: str = setting("", "NAME[/CONFIG][:VERSION][@FEATURE] of TFDS")
    batch_size: int = setting(
        128, "clips, or packed buffers, over all devices", 1, 2**20
    )
    joint_image_frames: int = setting(0, "independent images per video (VDM)", 0, 1024)
    stride: int = setting(1, "source frames from one frame to the next", 1, 4096)
    target_fps: float = setting(0.0, "rate to resample to; 0 keeps a file's", 0, 240)
    flip: bool = setting(False, "mirror half of the clips")
    held_out_combinations: int = setting(0, "labels of shapes not trained on", 0, 36)
    crop: str = setting("center", "of frames", choices=("center", "random"))
    validation_fraction: float = setting(0.1, "files that are not trained on", 0, 0.9)
    cache_dir: str = setting("", "of decoded clips; '' is ~/.cache/vdm_jax", path=True)
    cache_gib: float = setting(4.0, "its size in GiB", 0, 10**6)
    max_bad_fraction: float = setting(0.2, "unusable files that may be skipped", 0, 1)
    label_vocabulary: tuple[tuple[str, ...], ...] | None = setting(
        None, "names of the values of each label attribute; None: those of the data"
    )
    mean: float | None = setting(None, "mean of z; None measures it", -1e6, 1e6)
    variance: float | None = setting(None, "variance of z; None measures it", 1e-6, 1e6)


@dataclass(frozen=True)
class Codec:
    """What z, the diffused array, is."""

    kind: str = setting("identity", "from videos to z and back", choices="codec.CODECS")
    path: str = setting("", "folder of the autoencoder, if it is one", path=True)
    tile: int = setting(0, "pixels of tiles of larger frames; 0: whole", 0, 2**14)


@dataclass(frozen=True)
class Level:
    """One resolution of the U-Net."""

    channels: int = setting(MISSING, "width of every residual block", 1, 2**16)
    blocks: int = setting(MISSING, "residual blocks on the way down", 1, 64)
    layers: tuple[str, ...] = setting((), "layers after each block", choices=LAYERS)
    layers_after_last_block_only: bool = setting(False, "not after each block")

    def layers_after(self, block: int, blocks: int) -> tuple[str, ...]:
        """Return the names of the layers after block number `block` of `blocks`."""
        last = block + 1 == blocks
        return self.layers if last or not self.layers_after_last_block_only else ()


@dataclass(frozen=True)
class UNet:
    """A space-time U-Net. Each level halves height and width, never the frames."""

    kind: str = setting(
        "unet", "other kinds: their fields", choices="networks.NETWORKS"
    )
    levels: tuple[Level, ...] = setting((), "resolutions, from the full one down")
    mid_layers: tuple[str, ...] = setting(
        ("spatial_attention", "temporal_attention"),
        "layers between the two residual blocks of the lowest resolution",
        choices=LAYERS,
    )
    head_dim: int = setting(64, "width of an attention head", 1, 2**16)
    patch_size: int = setting(1, "of the stem; 1 is a 3x3 convolution", 1, 64)
    skip_downsamples: bool = setting(
        True, "skips of downsamplings too; one more block up"
    )
    relative_position: str = setting(
        "shaw",
        "embedding of the distance of frames",
        choices="networks.attention.RELATIVE_POSITIONS",
    )
    attention_backend: str = setting(
        "auto",
        "who computes attention; auto chooses by device and shape",
        choices="networks.backends.BACKENDS",
    )
    dropout: float = setting(0.0, "rate in residual blocks", 0, 0.999)
    remat: str = setting(
        "none",
        "recompute activations to save memory; dots keeps products",
        choices="networks.parts.REMAT_POLICIES",
    )
    dtype: str = setting("float32", "of products", choices=("float32", "bfloat16"))


@dataclass(frozen=True)
class Conditioning:
    """What the network is conditioned on. Guidance needs a dropout above 0."""

    kind: str = setting(
        "vdm",
        "dit: the layers read the noise level alone, an unknown label has an embedding",
        choices=("vdm", "dit"),
    )
    cond_dim: int = setting(1024, "width of the conditioning vector, even", 4, 2**16)
    cond_mlp_layers: int = setting(2, "layers that mix the conditions", 0, 64)
    label_dropout: float = setting(0.0, "probability of no label", 0, 0.999)
    attribute_dropout: float = setting(0.0, "of a label without an attribute", 0, 0.999)
    frame_index_embedding: bool = setting(False, "without it time is relative only")
    text_dim: int = setting(0, "width of token embeddings; 0 is no text", 0, 2**16)
    text_encoder: str = setting("", "filled in from the embeddings", path=True)
    text_encoder_sha256: str = setting("", "of its weights; filled in")
    clip_skip: int = setting(0, "last layers of CLIP not read; filled in", 0, 100)
    text_dropout: float = setting(0.0, "probability of no text", 0, 0.999)
    text_pooling: bool = setting(
        True, "pool the text into the vector too; without it no text is the text ''"
    )
    clean_frames: tuple[tuple[str, float], ...] = setting(
        (),
        "(which frames training gives clean, probability), none for the rest of 1; () "
        "is a model that is not given frames",
        0,
        1,
        choices="conditions.clean_frames.MASKS",
    )
    guidance_range: tuple[float, float] | tuple[()] = setting(
        (), "scales that a guided student was distilled for", 1, MAX_SCALE
    )


@dataclass(frozen=True)
class Stage:
    """A super-resolution stage of a cascade. Other models have no such section."""

    kind: str = setting("ssr", "spatial or temporal", choices=("ssr", "tsr"))
    factor: int = setting(2, "output's frames (tsr) or size over the input's", 2, 1024)
    temporal_fill: str = setting(
        "repeat", "between the input frames of tsr", choices=("repeat", "blank")
    )
    augmentation_time: tuple[float, float] = setting(
        (0.0, 1.0), "lowest and highest cosine time of the input's noise", 0, 1
    )
    train_crop: tuple[int, int] | tuple[()] = setting(
        (), "height and width of random crops in training; () is without", 1, 16384
    )


@dataclass(frozen=True)
class Diffusion:
    """The noise schedule, and what the network predicts."""

    logsnr_min: float = setting(-20.0, "log SNR of the most noise", -30, 30)
    logsnr_max: float = setting(20.0, "log SNR of the least noise", -30, 30)
    schedule: str = setting("cosine", "log SNR over time", choices=SCHEDULES)
    logsnr_shift: float = setting(0.0, "added to log SNR; below 0 is noisier", -30, 30)
    noise_logsnr_shift: float = setting(
        0.0, "shift of interpolated at t = 1; logsnr_shift is that at t = 0", -30, 30
    )
    train_logsnr_shifts: tuple[float, ...] = setting(
        (), "shifts that alternate over the batch in training; () is one", -30, 30
    )
    resolution_base: int = setting(
        0,
        "pixels a side at which one frame of z has no shift; flow's time is shifted by "
        "sqrt(height width) / base sqrt(frames of z); 0 is off",
        0,
        16384,
    )
    train_lognormal: tuple[float, float] | tuple[()] = setting(
        (),
        "mean and deviation of log(sigma / alpha) in training, as (0, 1) for flow's "
        "logit-normal times; () is uniform times",
        -30,
        30,
    )
    prediction_type: str = setting(
        "v", "what the network predicts", choices="diffusion.process.PREDICTION_TYPES"
    )
    distilled_steps: int = setting(0, "of a student; 0 is any number", 0, MAX_STEPS)
    precondition: bool = setting(False, "scale by the mean and the variance of z")
    loss_weighting: str = setting("snr_plus_one", "of the loss", choices=WEIGHTINGS)


@dataclass(frozen=True)
class Updates:
    """How parameters are updated."""

    optimizer: str = setting(
        "adam",
        "muon takes fewer steps and a higher learning rate",
        choices="training.optimizer.OPTIMIZERS",
    )
    learning_rate: float = setting(3e-4, "at its peak", 0, 10)
    warmup: int = setting(1000, "steps in which the learning rate rises", 0, MANY)
    lr_schedule: str = setting(
        "cosine", "its decay", choices="training.optimizer.LR_SCHEDULES"
    )
    end_lr_fraction: float = setting(1.0, "of the peak; 1 is constant", 0, 1)
    b1: float = setting(0.9, "decay of the first moment", 0, 0.999999)
    b2: float = setting(0.99, "decay of the second moment", 0, 0.99999999)
    weight_decay: float = setting(0.0, "decoupled weight decay", 0, 10)
    grad_clip_norm: float = setting(1.0, "largest global norm", 1e-9, 10**9)
    ema_decay: float = setting(0.9999, "0 keeps no average", 0, 0.99999999)
    grad_accum_steps: int = setting(1, "parts that a batch is split into", 1, 4096)
    trainable: tuple[tuple[str, bool], ...] = setting(
        ((".*", True),), "(path pattern, trains): the first match decides"
    )
    checkpoint_every: int = setting(1000, "steps", 1, MANY)
    keep_checkpoints: int = setting(3, "how many of the newest", 2, 10_000)
    log_every: int = setting(50, "steps", 1, MANY)
    max_nonfinite_updates: int = setting(
        10, "consecutive ones skipped before a stop", 1, MANY
    )


@dataclass(frozen=True)
class Train(Updates):
    """How parameters are trained."""

    steps: int = setting(100_000, "updates of the whole run", 1, MANY)
    sample_every: int = setting(1000, "steps; 0 never samples", 0, MANY)
    eval_every: int = setting(1000, "steps; 0 never validates", 0, MANY)


@dataclass(frozen=True)
class Mesh:
    """The devices, and how arrays are split over them."""

    data: int = setting(-1, "copies of the parameters; -1: the rest", -1, 2**20)
    fsdp: int = setting(1, "devices that split a copy", 1, 2**20)
    tensor: int = setting(1, "devices that split the channels of a copy", 1, 2**20)
    context: int = setting(1, "devices that split the frames of a video", 1, 2**20)
    slice: int = setting(1, "slices of a TPU pod, which hold copies", 1, 2**20)
    activation_rules: Rules = setting(
        (
            ("batch", ("slice", "data", "fsdp", "context")),
            ("frames", ("context", "slice", "data", "fsdp")),
            ("height", "context"),
            ("width", None),
            ("channel", "tensor"),
        ),
        "(logical axis of activations, mesh axes that split it if none before it does)",
    )
    param_rules: Rules = setting(
        ((".*(kernel|embedding)", ("tensor", "fsdp")), (".*", None)),
        "(path pattern, mesh axes that split the largest axis): first match",
    )


@dataclass(frozen=True)
class Sampling:
    """How videos are sampled."""

    steps: int = setting(256, "steps of the sampler", 1, MAX_STEPS)
    sampler: str = setting("ancestral", "method", choices="diffusion.samplers.SAMPLERS")
    ancestral_gamma: float = setting(0.1, "variance of the ancestral sampler", 0, 1)
    s_churn: float = setting(0.0, "S_churn of EDM, for Heun's sampler", 0, 1000)
    langevin_delta: float = setting(
        0.0, "step size of the Langevin corrector after each step; 0 is off", 0, 1
    )
    sampling_schedule: str = setting(
        "",
        "noise levels of the steps; '' is the model's own, karras for dpm, unipc, heun",
        choices=SCHEDULES,
    )
    guidance_scale: float = setting(
        1.0, "s of uncond + s (cond - uncond); 1 is off", 1, MAX_SCALE
    )
    guidance_schedule: str = setting(
        "constant",
        "constant, interval:LOW:HIGH (of logsnr, LOW below HIGH), "
        "oscillating:LOW:FIRST (the lower scale, 1 or more, and the fraction of steps "
        "before it) or frames:FIRST (the first frame's scale, 1 or more)",
    )
    cfg_mode: str = setting(
        "linear", "how guidance combines", choices="diffusion.guidance.CFG_MODES"
    )
    clip_x: float = setting(1.0, "bound of |x| at every step; 0 is off", 0, 1000)
    dynamic_threshold: float = setting(
        0.0, "percentile of |x| that bounds it instead, as 99.5; 0 is off", 0, 100
    )
    reconstruction_weight: float | None = setting(
        None,
        "w_r of reconstruction guidance, 0 is replacement; None is 9 for observed "
        "frames and pixels, 1 for an observed low-resolution video",
        0,
        10_000,
    )
    reconstruction_schedule: str = setting(
        "constant", "exact grows towards the noise", choices=("constant", "exact")
    )
    augmentation_snr: float = setting(
        5.0, "SNR of a stage's low-resolution input; inf is clean", 1e-9, float("inf")
    )
    tiled_sampling: bool = setting(
        False, "overlapping tiles of stage.train_crop's size"
    )
    batch_size: int = setting(16, "videos at a time", 1, 2**20)
    mesh: str = setting(
        "",
        "axes of the mesh and their devices, such as fsdp=4,context=2; '' splits the "
        "batch over all; training's previews are on its own mesh",
    )


@dataclass(frozen=True)
class Sample(Sampling):
    """How videos are sampled, in training's previews and where no flag says else."""

    num: int = setting(16, "number of videos", 1, MANY)
    label: str = setting("", "names, comma separated; '' draws them; none: all open")


TRAINING = {
    "": TopLevel(), "video": Video(), "data": Data(), "codec": Codec(),
    "network": UNet(), "conditioning": Conditioning(), "stage": Stage(),
    "autoencoder": Autoencoder(), "control": Control(), "mixed_sizes": MixedSizes(),
    "diffusion": Diffusion(), "discrete": Discrete(), "flow": FlowTimesteps(),
    "train": Train(), "mesh": Mesh(), "sample": Sample(),
}  # fmt: skip
LEVELS = ("discrete", "flow")  # what networks of other programs read of a noise level
# Those that a config has only where something reads them.
OPTIONAL = ("stage", "autoencoder", "control", "mixed_sizes", *LEVELS)
# Those that decide what a model is; `sample` has its default sampler.
MODEL = ("video", "codec", "network", "conditioning", "diffusion", *LEVELS, "sample")
