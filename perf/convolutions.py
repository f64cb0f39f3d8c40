"""Speed of three forms of a 3x3 convolution on a CPU, at the sizes of perf/race.py.

    python -m perf.convolutions

The forms are XLA's convolution, nine shifted matrix products, and Winograd's minimal
filtering F(2x2, 3x3) (Lavin and Gray 2016, arXiv:1509.09308), with 2.25 times fewer
multiplications. Prints GFLOP per second, with the FLOPs of the plain convolution.
"""

import statistics
import time

import jax
import jax.numpy as jnp

FRAMES = 32
SIZES = ((32, 32, 32), (32, 64, 32), (16, 64, 64), (16, 128, 64), (8, 128, 128),
         (8, 256, 128), (4, 256, 256), (4, 512, 256))  # fmt: skip
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


def convolution(x, w):
    """Convolve x [n, h, w, c] with w [3, 3, c, d]."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


def products(x, w):
    """Sum a matrix product for each position of the kernel."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = ((i, j) for i in range(3) for j in range(3))
    return sum(x[:, i : i + height, j : j + width] @ w[i, j] for i, j in shifted)


def winograd(x, w):
    """Compute 2x2 outputs from 4x4 inputs by sixteen matrix products."""
    n, height, width, c = x.shape
    g = jnp.array(G)
    kernel = jnp.einsum("ia,abcd,jb->ijcd", g, w, g).reshape(16, c, -1)

    def transformed(x, axis):  # B' x along one axis
        size = x.shape[axis] - 3
        a, b, c, d = (
            jax.lax.slice_in_dim(x, i, i + size, 2, axis=axis) for i in range(4)
        )
        return [a - c, b + c, c - b, b - d]

    def gathered(m, axis):  # A' m, both rows of every tile interleaved
        both = m[0] + m[1] + m[2], m[1] - m[2] - m[3]
        return jnp.stack(both, axis=axis)

    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = [t for rows in transformed(x, 1) for t in transformed(rows, 2)]
    m = jnp.einsum("ktc,kcd->ktd", jnp.stack(tiles).reshape(16, -1, c), kernel)
    m = m.reshape(4, 4, n, height // 2, width // 2, -1)
    rows = [gathered(of_row, 3) for of_row in m]  # [n, h / 2, w / 2, 2, d]
    return gathered(rows, 2).reshape(n, height, width, -1)


def seconds(call) -> float:
    """Return the median of 25 calls."""
    call().block_until_ready()
    times = []
    for _ in range(25):
        started = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print a row per size."""
    forms = (convolution, products, winograd)
    print("size, channels, GFLOP per second:", *(form.__name__ for form in forms))
    for side, c, d in SIZES:
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (FRAMES, side, side, c))
        w = jax.random.normal(keys[1], (3, 3, c, d))
        gflops = 2 * 9 * FRAMES * side * side * c * d / 1e9
        expected, row = convolution(x, w), []
        for form in forms:
            compiled = jax.jit(form)
            assert jnp.allclose(compiled(x, w), expected, atol=1e-3 * c**0.5)
            row.append(gflops / seconds(lambda f=compiled, x=x, w=w: f(x, w)))
        print(f"{side}x{side} {c} to {d}:", *(f"{speed:.0f}" for speed in row))


if __name__ == "__main__":
    main()
