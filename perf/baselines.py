"""Training and sampling steps of other libraries, in an environment with torch."""

import sys

from perf.measure import measure_steps


def vdp(size: dict[str, int]) -> dict:
    """Measure video-diffusion-pytorch: its L1 loss with Adam, one sampling step."""
    import types

    import torch  # pyright: ignore[reportMissingImports]

    # Its trainer's video export wants torchvision, whose wheel may not fit this torch.
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[name] = types.ModuleType(name)
    for part in ("transforms", "utils"):
        setattr(sys.modules["torchvision"], part, sys.modules[f"torchvision.{part}"])
    sys.modules["torchvision.transforms"].__dict__["ToTensor"] = object
    from video_diffusion_pytorch import (  # pyright: ignore[reportMissingImports]
        GaussianDiffusion,
        Unet3D,
    )

    torch.manual_seed(0)
    dim, b, f, side = size.values()
    device = torch_device()
    net = Unet3D(dim=dim, dim_mults=(1, 2, 4, 8))
    diffusion = GaussianDiffusion(net, image_size=side, num_frames=f, timesteps=1000)
    diffusion.to(device)
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    video = torch.rand((b, 3, f, side, side), device=device)

    def train() -> None:
        adam.zero_grad()
        diffusion(video).backward()
        adam.step()

    def sample() -> None:
        with torch.no_grad():
            diffusion.p_sample(video, torch.full((b,), 500, device=device))

    return measure_torch(net, train, sample)


def diffusers(size: dict[str, int]) -> dict:
    """Measure diffusers: mean squared error with Adam, a call without gradients."""
    import torch  # pyright: ignore[reportMissingImports]
    from diffusers import (  # pyright: ignore[reportMissingImports]
        UNet3DConditionModel,
    )

    torch.manual_seed(0)
    device = torch_device()
    dim, b, f, side = size.values()
    net = UNet3DConditionModel(
        sample_size=side,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(dim * m for m in (1, 2, 4, 8)),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=32,
    ).to(device)
    adam = torch.optim.Adam(net.parameters(), 1e-4)
    video = torch.rand((b, 3, f, side, side), device=device)
    t = torch.full((b,), 500, device=device)
    text = torch.zeros((b, 1, 32), device=device)

    def train() -> None:
        adam.zero_grad()
        output = net(video, t, encoder_hidden_states=text).sample
        (output - video).square().mean().backward()
        adam.step()

    def sample() -> None:
        with torch.no_grad():
            net(video, t, encoder_hidden_states=text)

    return measure_torch(net, train, sample)


def torch_device() -> str:
    """Return a GPU if there is one, with TF32 products, as ours are on GPUs."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.backends.cuda.matmul.allow_tf32 = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def measure_torch(net, train, sample) -> dict:
    """Measure a network's steps; FLOPs are counted last, as counting is slow."""
    import torch  # pyright: ignore[reportMissingImports]

    def synchronised(step):
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    result = measure_steps(
        sum(p.numel() for p in net.parameters()),
        lambda: synchronised(train),
        lambda: synchronised(sample),
    )
    if torch.cuda.is_available():
        result["memory"] = torch.cuda.max_memory_allocated() / 2**30
    return result | {"flops": count_flops(train, sample)}


def count_flops(train, sample) -> dict[str, float]:
    """Return the FLOPs of one call of each."""
    from torch.utils.flop_counter import (  # pyright: ignore[reportMissingImports]
        FlopCounterMode,
    )

    flops = {}
    for name, step in (("train", train), ("sample", sample)):
        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = float(counter.get_total_flops())
    return flops
