"""Returns: what a state, imagined or lived through, is worth, and how much its loss should count.

Every function is one equation: no parameters, no randomness, and no stop-gradient (those stand in the
agents' files). Time is dimension 0; all that follows it is batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from reverie.types import ReverieError


def lambda_returns(
    reward: Float[Tensor, "H *batch"],
    value: Float[Tensor, "H *batch"],
    discount: Float[Tensor, "H *batch"],
    lambda_: float,
) -> Float[Tensor, "H-1 *batch"]:
    """λ-returns of H imagined states: the targets of all but the last.

    The reward belongs to the state it arrived with, so a state's value counts its own reward::

        V_k = r_k + d_k [(1 - λ) v_{k+1} + λ V_{k+1}],   V_H := v_H

        state      z1      z2      z3     ...    zH-1     zH
        reward     r1      r2      r3            rH-1     (unused)
        discount   d1      d2      d3            dH-1     (unused)
        value   (unused)   v2      v3            vH-1     vH
        target     V1      V2      V3            VH-1      -   vH is only a bootstrap

    λ = 0 looks one step ahead; λ = 1 sums all rewards and bootstraps once, at the horizon. A discount of 0
    ends the return there.

    Dreamer (Hafner et al. 2020), Eq. 4-6, in the recursive form of its code. Raises ``ReverieError`` for
    unequal shapes or H < 2.
    """
    _check("lambda_returns", 2, reward, value, discount)
    return td_lambda_returns(reward[:-1], value[1:], discount[:-1], lambda_)


def td_lambda_returns(
    reward: Float[Tensor, "M *batch"],
    next_value: Float[Tensor, "M *batch"],
    discount: Float[Tensor, "M *batch"],
    lambda_: float,
) -> Float[Tensor, "M *batch"]:
    """λ-returns of M transitions, each with its reward, its discount and the value of where it led.

    ::

        G_k = r_k + d_k [(1 - λ) v'_k + λ G_{k+1}],   G_{M+1} := v'_M

    Which reward and discount go with which state is the caller's choice; this recursion is the same for all.

    Sutton and Barto, 2nd edition, Section 12.1. Raises ``ReverieError`` for unequal shapes or M < 1.
    """
    _check("td_lambda_returns", 1, reward, next_value, discount)
    # What needs no loop is done for all steps at once; the loop is one fused operation a step.
    one_step = (reward + (1 - lambda_) * discount * next_value).unbind(0)
    decay = (lambda_ * discount).unbind(0)
    target = next_value[-1]
    targets = []
    for k in reversed(range(len(one_step))):
        target = torch.addcmul(one_step[k], decay[k], target)
        targets.append(target)
    return torch.stack(targets[::-1])


def n_step_returns(
    reward: Float[Tensor, "M *batch"],
    next_value: Float[Tensor, "M *batch"],
    discount: Float[Tensor, "M *batch"],
    goes_on: Float[Tensor, "M *batch"],
) -> Float[Tensor, "M *batch"]:
    """What each of M transitions in a row earns up to the last of them, or to the end of its episode.

    ::

        G_k = r_k + d_k [G_{k+1} if it goes on, else v'_k],   G_{M+1} := v'_M

    ``goes_on`` is 0 where the transition leads to an episode's last row, and the next one is of another episode. A
    ``discount`` of 0 there is a true end; any other is a clock's, and the value of the last row counts.

    Mnih et al. 2016, Algorithm S3. Raises ``ReverieError`` for unequal shapes or M < 1.
    """
    _check("n_step_returns", 1, reward, next_value, discount, goes_on)
    target, targets = next_value[-1], []
    for r, v, d, on in zip(
        *(x.flip(0).unbind(0) for x in (reward, next_value, discount, goes_on)), strict=True
    ):
        target = torch.addcmul(r, d, torch.lerp(v, target, on))
        targets.append(target)
    return torch.stack(targets[::-1])


def vtrace(
    ratio: Float[Tensor, "M *batch"],
    reward: Float[Tensor, "M *batch"],
    value: Float[Tensor, "M *batch"],
    next_value: Float[Tensor, "M *batch"],
    discount: Float[Tensor, "M *batch"],
    goes_on: Float[Tensor, "M *batch"],
    lambda_: float = 1.0,
    most: float = 1.0,
) -> tuple[Float[Tensor, "M *batch"], Float[Tensor, "M *batch"]]:
    """Value targets and policy advantages from M transitions that another, older policy chose.

    ``ratio`` is pi / mu, the probability of the action taken now over that when it was taken::

        rho_k = min(most, ratio_k)            c_k = lambda min(1, ratio_k)
        V_k   = v_k + rho_k (r_k + d_k v'_k - v_k) + d_k c_k (V_{k+1} - v'_k)     the last term only if it goes on
        A_k   = rho_k (r_k + d_k V_{k+1} - v_k)                                   with v'_k for V_{k+1} if it does not

    With ratios of 1 and lambda 1, V is the n-step return. The other arguments are those of ``n_step_returns``.

    IMPALA (Espeholt et al. 2018), Eq. 1 and Sec. 4.2. Raises ``ReverieError`` for unequal shapes or M < 1.
    """
    _check("vtrace", 1, ratio, reward, value, next_value, discount, goes_on)
    rho, trace = ratio.clamp(max=most), lambda_ * ratio.clamp(max=1.0)
    delta = rho * (reward + discount * next_value - value)
    decay = discount * trace * goes_on
    ahead, gains = torch.zeros_like(delta[-1]), []  # V_k - v_k
    for d, c in zip(delta.flip(0).unbind(0), decay.flip(0).unbind(0), strict=True):
        ahead = torch.addcmul(d, c, ahead)
        gains.append(ahead)
    gain = torch.stack(gains[::-1])
    after = torch.cat([gain[1:], torch.zeros_like(gain[:1])]) * goes_on
    return value + gain, rho * (reward + discount * (next_value + after) - value)


def imagination_weights(discount: Float[Tensor, "H *batch"]) -> Float[Tensor, "H-1 *batch"]:
    """How much each target of ``lambda_returns`` counts: the probability, discounted, of getting there.

    ::

        w_1 = 1,   w_k = d_1 d_2 ... d_{k-1},   k = 1..H-1

    Dreamer (Hafner et al. 2020), as its code has it: the paper brings the weights in for early ends only, the
    code always uses them, as constants. So detach them. Raises ``ReverieError`` for H < 2.
    """
    _check("imagination_weights", 2, discount)
    return torch.cat([torch.ones_like(discount[:1]), discount[:-2]]).cumprod(0)


def _check(name: str, least: int, *tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:  # would broadcast, and be wrong without a word
        raise ReverieError(f"{name} needs tensors of one shape with time first, got {shapes}")
    if not shapes[0] or shapes[0][0] < least:
        raise ReverieError(f"{name} needs at least {least} steps of time on dimension 0, got {shapes[0]}")
