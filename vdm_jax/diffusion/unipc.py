"""Coefficients of UniPC of second order (Zhao et al. 2023, arXiv:2302.04867).

It predicts the data, with B(h) = e^h - 1 (section 3.3, "bh2"), as diffusers does. A row
first corrects the z that the row before it has predicted, with the prediction there,
which costs no call; then it predicts z at the next level.
"""

import numpy as np

from vdm_jax.diffusion.schedules import NoiseLevel

Table = dict[str, np.ndarray]


def columns(t: NoiseLevel, s: NoiseLevel) -> Table:
    """Return the coefficients of n steps from levels t to levels s, [n] each.

    corrected = keep z + last_z_coef last_z + new_coef x + old_coef x' + older_coef x''
    next z = z_coef corrected + x_coef x + previous_x_coef x'

    with x the prediction at z, x' and x'' those of the rows before, and last_z what the
    row before corrected. The last step is of first order.
    """
    h = (s.logsnr - t.logsnr) / 2  # of log(alpha / sigma); infinite in the last row
    weight = -np.expm1(-h)
    ratio = np.ones(len(h))
    ratio[1:-1] = h[1:-1] / h[:-2]
    extrapolation = np.where(np.arange(len(h)) == len(h) - 1, 0.0, ratio / 2)
    new, older = _corrector(h[:-1], weight[:-1], ratio[:-1])
    z_coef, x_coef = s.sigma / t.sigma, s.alpha * weight
    corrector = {
        "keep": np.zeros(len(h) - 1),
        "last_z_coef": z_coef[:-1],
        "new_coef": x_coef[:-1] * new,
        "old_coef": x_coef[:-1] * (1 - new - older),
        "older_coef": x_coef[:-1] * older,
    }
    table = {name: np.append(0.0, column) for name, column in corrector.items()}
    table |= {
        "z_coef": z_coef,
        "x_coef": x_coef * (1 + extrapolation),
        "previous_x_coef": -x_coef * extrapolation,
    }
    return first_row(table, 0)


def _corrector(h: np.ndarray, weight: np.ndarray, ratio: np.ndarray):
    """Return the coefficients of x at a step's end and of x before its start.

    They solve the order conditions of UniC-2 (proposition A.1): ratio is h over the
    step before, and weight is 1 - e^-h. That of x at the start is the rest of 1.
    """
    first = (1 - weight / h) / weight
    second = (1 - 2 * (1 - weight / h) / h) / weight
    r = -1 / ratio
    inner = (first - second) / (1 - r)
    return first - inner, inner / r


def first_row(table: Table, row: int) -> Table:
    """Return the table of a run that starts at a row, without predictions before it.

    Its step, and the next row's correction, are of first order.
    """
    table = {name: column.copy() for name, column in table.items()}
    for name in ("last_z_coef", "new_coef", "old_coef", "older_coef"):
        table[name][row] = 0.0
    table["keep"][row] = 1.0
    table["x_coef"][row] += table["previous_x_coef"][row]
    table["previous_x_coef"][row] = 0.0
    parts = ("new_coef", "old_coef", "older_coef")
    half = sum(table[name][row + 1 : row + 2] for name in parts) / 2
    for name, value in zip(parts, (half, half, 0.0), strict=True):
        table[name][row + 1 : row + 2] = value
    return table
