"""Self-attention that reads other frames, against the published programs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small_sd
from tests.parity import recorded
from tests.parity.drawn import normal, weight
from vdm_jax.networks import attention, sd

TABLES = {  # of 4 frames, by hand
    "own": [[0], [1], [2], [3]],
    "first": [[0]] * 4,
    "previous": [[0, 0], [0, 0], [0, 1], [0, 2]],
    "every": [[0, 1, 2, 3]] * 4,
    "ends": [[0, 3]] * 4,
}


@pytest.mark.parametrize("name", attention.FRAME_READS)
def test_the_table(name):
    np.testing.assert_array_equal(attention.FRAME_READS[name](4), TABLES[name])
    assert not attention.FRAME_READS[name](1).any()


def description(file):
    """Return the JSON next to an npz."""
    return json.loads((recorded.FOLDER / f"{file}.json").read_text())


def attend(network, x, reads, dtype, tokens=None):
    """Return the drawn attention of width 16 of x [b, f, n, 16] to tokens, or to x."""
    tokens = x if tokens is None else tokens
    shapes = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}
    params = {}
    for theirs, ours in shapes.items():
        width = tokens.shape[-1] if ours in "kv" else 16
        kernel = weight(network, f"{theirs}.weight", (16, width)).T
        params[ours] = {"kernel": kernel}
    params["out"]["bias"] = weight(network, "to_out.0.bias", (16,))
    params, x, tokens = jax.tree.map(
        lambda a: jnp.asarray(a, dtype), (params, x, tokens)
    )
    apply = jax.jit(
        lambda p, x, y: sd.Attention(2).apply({"params": p}, x, y, reads=reads)
    )
    return apply(params, x, tokens)


@pytest.mark.parametrize(
    ("file", "array", "network", "given", "batch", "reads"),
    [
        *(
            (
                "tune_a_video_parts", f"st_attn_{f}", "tav/st_attn",
                f"tav/input/st_attn_{f}", 2, "previous",
            )
            for f in (1, 3, 4)
        ),
        (
            "controlvideo_unet", "attention_full", "cv/attention",
            "cv/input/attention", 2, "every",
        ),
        (
            "controlvideo_unet", "attention_pair", "cv/attention",
            "cv/input/attention", 2, "ends",
        ),
        *(
            (
                "text2video_zero_attention", f"first_frame_chunks_{n}",
                "t2vz/attention", f"t2vz/input/attention_{n}", n, "first",
            )
            for n in (1, 2, 3)
        ),
    ],
)  # fmt: skip
def test_attention_equals_the_published_program(
    file, array, network, given, batch, reads, x64
):
    expected = recorded.load(file)[array]
    x = normal(given, expected.shape).reshape(batch, -1, *expected.shape[1:])
    table = attention.FRAME_READS[reads](x.shape[1])
    for dtype, limit in ((np.float32, 1e-5), (np.float64, 1e-6)):
        found = attend(network, x, table, dtype).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=limit)
    if x.shape[1] > 1:  # what it would be without
        own = attend(network, x, None, np.float32).reshape(expected.shape)
        assert np.abs(own - expected).max() > 0.1


def test_every_frame_in_chunks_of_the_queries_equals_the_published_program(monkeypatch):
    """All frames are one sequence of 36 pixels of 2 heads, in chunks of three."""
    expected = recorded.load("controlvideo_unet")["attention_full"]
    x = normal("cv/input/attention", expected.shape)
    x = x.reshape(2, -1, *expected.shape[1:])
    dense, in_chunks, sizes = attention.attention, attention.chunked_attention, []

    def chunked(q, k, v, mask=None):
        scores = q.shape[0] * q.shape[-2] * k.shape[-3]  # of one query of each video
        return in_chunks(q, k, v, mask=mask, max_scores=3 * scores)

    def record(q, *others, **masks):
        sizes.append(q.shape[-3])
        return dense(q, *others, **masks)

    monkeypatch.setattr(attention, "chunked_attention", chunked)
    monkeypatch.setattr(attention, "attention", record)
    table = attention.FRAME_READS["every"](x.shape[1])
    found = attend("cv/attention", x, table, np.float32).reshape(expected.shape)
    assert {*sizes} == {3}
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("reads", TABLES)
def test_a_frame_changes_what_reads_it_and_no_other_video(reads):
    table, frames = attention.FRAME_READS[reads](4), range(4)
    x = np.array(normal("cv/input/attention", (2, 4, 9, 16)))
    attended = attend("cv/attention", x, table, np.float32)
    for changed in frames:
        other = x.copy()
        other[0, changed, 0] += 1
        found = attend("cv/attention", other, table, np.float32)
        same = [np.array_equal(found[0, i], attended[0, i]) for i in frames]
        assert same == [
            i != changed and changed not in TABLES[reads][i] for i in frames
        ]
        np.testing.assert_array_equal(found[1], attended[1])


def test_cross_attention_of_text2video_zero_is_each_frame_s_own():
    """Its processor leaves cross-attention as it is."""
    expected = recorded.load("text2video_zero_attention")["cross_unchanged"]
    x = normal("t2vz/input/attention_2", (8, 9, 16))[None]
    text = normal("t2vz/input/cross", (8, 5, 24))[None]
    found = attend("t2vz/cross", x, None, np.float32, text)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    first = attend("t2vz/cross", x, None, np.float32, text[:, [0] * 8])
    assert np.abs(first[0] - expected).max() > 0.1


def unet_output(network, config, sample, text, timesteps, **section):
    """Return the drawn U-Net's output in torch's order for sample [b, c, f, h, w]."""
    config = config | {
        name: [kind.replace("3D", "2D") for kind in config[name]]
        for name in ("down_block_types", "up_block_types")
    }
    params = small_sd.params_of(config, small_sd.torch_weights(network, config))
    model = small_sd.build(config, **section)
    z = np.moveaxis(sample, 1, -1)
    logsnr = small_sd.logsnr_of(timesteps)
    arrays = [jnp.asarray(a, np.float32) for a in (z, logsnr, text)]
    output = small_sd.run(model, params, *arrays[:2], tokens=arrays[2])
    return np.moveaxis(output, -1, 1)


@pytest.mark.parametrize(("array", "reads"), [("full", "every"), ("pair", "ends")])
def test_controlvideo_s_unet_equals_the_published_program(array, reads):
    """Two clips of four frames; the norms of its resnets are joint."""
    config = description("controlvideo_unet")["config"]["unet"]
    expected = recorded.load("controlvideo_unet")[array]
    sample = normal("cv/input/sample", (2, 4, 4, 8, 8))
    text, timesteps = normal("cv/input/text", (2, 5, 24)), (501, 21)
    arguments = "cv/unet", config, sample, text, timesteps
    found = unet_output(*arguments, frame_reads=reads, joint_norms=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    each = unet_output(*arguments, frame_reads=reads)
    assert np.abs(each - expected).max() > 0.1


def test_text2video_zero_s_unet_equals_the_published_program():
    """Two guidance branches of three frames, which are its batch axis."""
    config = description("text2video_zero_attention")["config"]["unet"]
    expected = recorded.load("text2video_zero_attention")["unet_first_frame"]
    frames = normal("t2vz/input/frames", (6, 4, 8, 8))
    sample = frames.reshape(2, 3, 4, 8, 8).swapaxes(1, 2)
    text = normal("t2vz/input/text", (2, 5, 24))
    arguments = "t2vz/unet", config, sample, text, (501, 501)
    found = unet_output(*arguments, frame_reads="first")
    found = found.swapaxes(1, 2).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
