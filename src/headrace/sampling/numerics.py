"""exp, log and probability masses as fixed sequences of IEEE operations: the same bits on every machine.

``docs/sampling.md`` is the definition; this is its torch form. Only operations that IEEE 754 defines to the last bit
are used, one rounding each: add, subtract, multiply, divide, floor, compare, select, conversions, bit operations.
``torch.exp``, ``torch.log`` and the ops that fuse a multiply with an add (addcmul, lerp, add with an alpha) are not.
Divisors are tensors: on some devices torch divides by a Python number by multiplying with its inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASS_BITS = 40
MASS_ONE = 1 << MASS_BITS
"""The mass of the most likely token of a row. Sums of up to 2^22 masses fit in int64."""

EXP_FLOOR = -64.0
"""Arguments of exp below this one count as this one; the mass is 0 long before."""

# Cephes expf: exp(x) = 2^k * exp(r), k = floor(x / ln 2 + 1/2), |r| <= ln(2) / 2. LN2_HI has 9 significant bits, so
# k * LN2_HI is exact. All constants are rounded to float32 where they are used.
_LOG2_E = 1.44269504088896341
_LN2_HI_32 = 0.693359375
_LN2_LO_32 = -2.12194440e-4
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

# fdlibm e_log.c: log(x) = k * ln 2 + log(1 + f), sqrt(2)/2 < 1 + f < sqrt(2).
_LN2_HI_64 = 6.93147180369123816490e-01
_LN2_LO_64 = 1.90821492927058770002e-10
_LG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_SQRT_HALF_SHIFT = 0x95F64
_MANTISSA_HIGH = 0xFFFFF
_ONE_HIGH = 0x3FF00000


def exp_neg(x: Tensor) -> Tensor:
    """exp of float32 values <= 0 (any shape), to about 1 ulp; exp(0) is 1 and no value is above it."""
    x = x.clamp_min(EXP_FLOOR)
    k = (x * _LOG2_E).add_(0.5).floor_()
    r = x.sub_(k * _LN2_HI_32).sub_(k * _LN2_LO_32)
    p = r * _EXP_POLY[0]
    for coefficient in _EXP_POLY[1:-1]:
        p = p.add_(coefficient).mul_(r)
    p = p.add_(_EXP_POLY[-1]).mul_(r).mul_(r)
    p = p.add_(r).add_(1.0)
    power_of_two = k.to(torch.int32).add_(127).bitwise_left_shift_(23).view(torch.float32)
    return p.mul_(power_of_two)


def log(x: Tensor) -> Tensor:
    """Natural log of float64 values, positive and normal (any shape), to about 1 ulp."""
    bits = x.contiguous().view(torch.int64)
    high = bits >> 32
    mantissa = high & _MANTISSA_HIGH
    is_above = (mantissa + _SQRT_HALF_SHIFT) & 0x100000  # 1 + f >= sqrt(2): halve it, and add 1 to k
    k = ((high >> 20) - 1023 + (is_above >> 20)).to(torch.float64)
    scaled = ((mantissa | (is_above ^ _ONE_HIGH)) << 32) | (bits & 0xFFFFFFFF)
    f = scaled.view(torch.float64) - 1.0
    s = f / (f + 2.0)
    z = s * s
    w = z * z
    t1 = w * (_LG[1] + w * (_LG[3] + w * _LG[5]))
    t2 = z * (_LG[0] + w * (_LG[2] + w * (_LG[4] + w * _LG[6])))
    half_square = (f * 0.5) * f
    correction = s * (half_square + (t1 + t2)) + k * _LN2_LO_64
    return k * _LN2_HI_64 - ((half_square - correction) - f)


def masses(scaled: Tensor) -> Tensor:
    """Fixed-point exp of float32 values <= 0: int64, ``MASS_ONE`` for 0, never rising when the value falls.
    Sums of masses do not depend on order."""
    return exp_neg(scaled).mul_(float(MASS_ONE)).to(torch.int64)


def log_mass(total: Tensor) -> Tensor:
    """Natural log of a sum of masses (int64, >= ``MASS_ONE``) over ``MASS_ONE``, in float64."""
    return log(total.to(torch.float64) * 2.0**-MASS_BITS)


def log_softmax_fixed(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension: float32 [..., V] without NaN or +inf, not all -inf, to float64 [..., V]."""
    top = logits.amax(-1, keepdim=True)
    log_total = log_mass(masses(logits - top).sum(-1, keepdim=True))
    return relative_logprobs(logits, top, log_total)


def relative_logprobs(logits: Tensor, top: Tensor, log_total: Tensor) -> Tensor:
    """Log probabilities in float64 of float32 logits, given their row's largest and its ``log_mass``."""
    return (logits.to(torch.float64) - top.to(torch.float64)) - log_total


def argmax_lowest(values: Tensor) -> Tensor:
    """Index of the largest value of each row of [R, V], the lowest one on ties; of the first NaN where there is one."""
    if values.device.type == "cpu":  # numpy's is the same function, ten times as fast
        return torch.from_numpy(values.numpy().argmax(axis=-1))
    return values.argmax(-1)
