"""Named settings: an agent's class, and overrides laid over its paper's values in the order they are named.

``paper`` is empty by definition: a Config's defaults are the paper's. ``laptop`` is ours, for two cores and no
GPU; ``debug`` shrinks everything for tests.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reverie.types import ReverieError

AGENTS = {  # name: (module, class)
    "dyna_q": ("reverie.agents.dyna_q", "DynaQ"),
    "a2c": ("reverie.agents.a2c", "A2C"),
    "i2a": ("reverie.agents.i2a", "I2A"),
    "distral": ("reverie.agents.distral", "Distral"),
    "naf": ("reverie.agents.naf", "NAF"),
    "ddpg": ("reverie.agents.ddpg", "DDPG"),
    "td3": ("reverie.agents.td3", "TD3"),
    "sac": ("reverie.agents.sac", "SAC"),
    "mpc": ("reverie.agents.mpc", "MPC"),
    "mve": ("reverie.agents.mve", "MVE"),
    "mbpo": ("reverie.agents.mbpo", "MBPO"),
    "her": ("reverie.agents.her", "HER"),
    "tdm": ("reverie.agents.tdm", "TDM"),
    "planet": ("reverie.agents.planet", "PlaNet"),
    "dreamer_v1": ("reverie.agents.dreamer_v1", "DreamerV1"),
    "dreamer_v2": ("reverie.agents.dreamer_v2", "DreamerV2"),
    "dreamer_v3_2023": ("reverie.agents.dreamer_v3_2023", "DreamerV3of2023"),
    "dreamer_v3": ("reverie.agents.dreamer_v3", "DreamerV3"),
    "daydreamer": ("reverie.agents.daydreamer", "DayDreamer"),
    "world_models": ("reverie.agents.world_models", "WorldModels"),
}

DEBUG = dict(
    depth=2,
    stoch=5,
    deter=10,
    units=10,
    steps=1_200,
    prefill=200,
    pretrain=0,
    train_every=100,
    train_updates=2,
    batch_size=5,
    batch_length=8,
)

# Sokoban of 7x7 cells as planes, on two cores
CELLS: dict[str, Any] = dict(
    pixels=False,
    image_size=0,
    action_repeat=1,
    steps=500_000,
    actors=64,
    length=10,
    channels=(16, 16),
    kernels=(3, 3),
    strides=(1, 2),
    same=True,
    value_scale=0.25,
    optimizer="adam",
    lr=1e-3,
    lr_end=1e-4,
)

VECTORS_DEBUG = dict(
    units=(8, 8),
    tau=0.1,
    steps=400,
    prefill=100,
    train_every=20,
    train_updates=2,
    batch_size=5,
)


def v3_2023_size(deter: int, depth: int, units: int, layers: int) -> dict[str, int]:
    """A row of the table of sizes of Dreamer V3's first version."""
    return dict(
        deter=deter, depth=depth, units=units, layers=layers, vector_units=units, vector_layers=layers
    )


def v3_size(deter: int) -> dict[str, int]:
    """Dreamer V3's one dial: everything follows from the size of h."""
    return dict(deter=deter, hidden=deter // 8, classes=deter // 128, depth=deter // 128, units=deter // 8)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dyna_q": {
        "paper": {},
        "plus": dict(kappa=1e-4),  # Dyna-Q+ (Sec. 8.3); the book gives no number, this one is ours
        "laptop": {},  # a table is small
        "debug": dict(steps=50, planning_steps=3),
    },
    "mpc": {
        "paper": {},
        "half_cheetah": dict(  # PETS' other extreme; the number of updates as for the cart-pole
            steps=300_000,
            prefill=1_000,
            train_every=1_000,
            train_updates=23_500,
            units=200,
            layers=4,
            decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
            horizon=30,
            candidates=500,
            elites=50,
        ),
        # Nagabandi et al. 2018 on the half-cheetah: ten random episodes, then seven times nine; sixty passes each
        "mbmf": dict(
            steps=73_000,
            prefill=10_000,
            train_every=9_000,
            train_updates=4_900,
            batch_size=512,
            members=1,
            units=500,
            layers=2,
            act="relu",
            noisy=False,
            decay=(),
            planner="shooting",
            horizon=20,
            candidates=1_000,
            particles=1,
        ),
        # Two cores, no GPU: small networks and a small search, for tasks of Pendulum's size. Where a variance is
        # learned too, the likelihood soon cares little for what it calls noise, and the mean stays wrong.
        "laptop": dict(
            steps=1_000,
            prefill=200,
            train_every=50,
            train_updates=100,
            batch_size=64,
            units=64,
            layers=2,
            noisy=False,
            lr=2e-3,
            decay=(),
            horizon=25,
            candidates=64,
            elites=8,
            iterations=3,
            particles=5,
        ),
        "debug": dict(
            steps=400,
            prefill=100,
            train_every=100,
            train_updates=2,
            batch_size=5,
            units=8,
            layers=1,
            decay=(1e-4, 1e-4),
            horizon=3,
            candidates=8,
            elites=2,
            iterations=2,
            particles=5,
        ),
    },
    "naf": {
        "paper": {},
        "imagination": dict(imagination=5),  # Alg. 2, with a fitted model; 10 is best with the true one
        "laptop": dict(
            steps=10_000, prefill=500, train_updates=1, units=(64, 64), tau=0.005, noise_scale=1.0
        ),
        "debug": VECTORS_DEBUG,
    },
    "mve": {
        "paper": {},
        "walker": dict(horizon=3, tau=1e-3, actor_lr=1e-4, critic_lr=1e-4),
        "swimmer": dict(actor_lr=1e-4),
        "steve": dict(  # Buckman et al. 2018, from its code
            expand="steve",
            pretrain=0,
            norm=False,
            horizon=3,
            members=4,
            critics=4,
            model_units=512,
            ends=True,
            units=(128, 128, 128, 128),
            model_batch=512,
            batch_size=512,
            tau=0.002,  # for a copy every 500 updates
            noise=0.1,  # for a sample of a Gaussian now and then
            model_lr=3e-4,
            actor_lr=3e-4,
            critic_lr=3e-4,
        ),
        # Small tasks, one update a step. The targets are for real states alone: taught on imagined ones too, where it
        # meets the actor's actions and no others, the critic often drives so small an actor into a corner.
        "laptop": dict(
            steps=10_000,
            expand="last",
            norm=False,
            prefill=500,
            pretrain=1_000,
            train_updates=1,
            model_batch=128,
            batch_size=64,
            model_units=64,
            model_layers=2,
            horizon=3,
            units=(64, 64),
            tau=0.005,
        ),
        "debug": dict(**VECTORS_DEBUG, pretrain=0, model_batch=8, model_units=8, model_layers=1, horizon=2),
    },
    "mbpo": {
        "paper": {},
        "walker": dict(steps=300_000, k_to=1, entropy=-3.0),
        "half_cheetah": dict(steps=400_000, train_updates=40, k_to=1, entropy=-3.0, ends=False),
        "ant": dict(steps=300_000, k_to=25, k_end=100, entropy=-4.0),
        "humanoid": dict(
            steps=300_000, model_units=400, model_every=1_000, k_to=25, k_end=300, retain=5, entropy=-2.0
        ),
        "inverted_pendulum": dict(steps=15_000, prefill=500, train_updates=10, k_to=1, entropy=-0.05),
        "laptop": dict(
            steps=5_000,
            prefill=500,
            train_updates=5,
            batch_size=128,
            members=3,
            elites=3,
            model_units=64,
            model_layers=2,
            decay=(),
            ends=False,
            model_every=250,
            most_passes=30,
            rollouts=40,
            k_to=1,
            units=(64, 64),
            entropy=None,
            actor_lr=1e-3,
            critic_lr=1e-3,
            alpha_lr=1e-3,
        ),
        "debug": dict(
            **VECTORS_DEBUG | {"batch_size": 20},
            members=3,
            elites=2,
            model_units=8,
            model_layers=1,
            decay=(1e-4, 1e-4),
            model_every=100,
            model_batch=16,
            most_passes=2,
            rollouts=2,
        ),
    },
    "a2c": {
        "paper": {},
        # Two cores, no GPU, small tasks with vectors; a larger rate, because the run is short.
        "laptop": dict(
            pixels=False,
            image_size=0,
            action_repeat=1,
            steps=200_000,
            units=64,
            lr=2e-3,
        ),
        # The model-free baseline of the i2a preset of that name, and one with about as many parameters.
        "cells": dict(**CELLS, units=256),
        "cells_wide": dict(**CELLS | dict(channels=(32, 32)), units=440),
        # The stride-1 residual network of Sokoban's later baselines (Guez et al. 2019); a small picture as it is.
        "resnet": dict(
            channels=(32, 32, *[64] * 7),
            kernels=(4,) * 9,
            strides=(1,) * 9,
            same=True,
            residual=True,
            pixels=False,
            image_size=0,
            action_repeat=1,
        ),
        "debug": dict(
            action_repeat=1, image_size=64, steps=1_200, actors=4, length=6, units=10, vector_units=10
        ),
    },
    "distral": {
        "paper": {},
        # Two cores: eight goals of the two rooms, minutes. Over it, the paper's other agents (Sec. 4): without the
        # entropy or without the KL, with one column, and one policy for all tasks (which sees none of them).
        "laptop": dict(steps=300_000, lr=3e-3, lr_end=3e-4, optimizer="adam"),
        "kl": dict(alpha=1.0),
        "one_column": dict(policy="one"),
        "a3c": dict(policy="one", alpha=0.0),
        "a3c_multitask": dict(policy="shared", alpha=0.0),
        "debug": dict(steps=1_200, actors=4, length=6, units=8),
    },
    "i2a": {
        "paper": {},
        # One-pixel-per-cell pictures (App. B, MiniPacman): the same networks on planes of cells.
        "minipacman": dict(
            pixels=False,
            image_size=0,
            frames="cells",
            model_tile=1,
            reward_bins=(),
            channels=(16, 16),
            kernels=(3, 3),
            strides=(1, 2),
            units_lstm=256,
            units=256,
        ),
        # Two cores, no GPU: Sokoban of 7x7 cells and two boxes, as planes (reverie/SokobanSmall-v0). The encoder has
        # the second, strided convolution alone.
        "laptop": dict(
            **CELLS,
            units=256,
            frames="cells",
            model_tile=1,
            model_channels=32,
            model_steps=100_000,
            random_steps=60_000,
            model_updates=12_000,
            horizon=3,
            encoder_from=1,
            units_lstm=64,
            rollout_units=64,
        ),
        # Over laptop. Controls of Sec. 4: a model that says nothing, the world's own rules, one without rewards, one
        # that is poor; and acting by what the futures add up to.
        "copy": dict(model="copy", model_steps=0, random_steps=0, model_updates=0),
        "simulator": dict(model="simulator", model_steps=0, random_steps=0, model_updates=0),
        "no_rewards": dict(rewards=False),
        "poor": dict(model_channels=6, model_updates=600),
        "search": dict(search=True),
        "debug": dict(
            image_size=64,
            steps=1_200,
            actors=4,
            length=6,
            model_steps=0,
            random_steps=0,
            model_updates=0,
            model_batch=4,
            model_channels=3,
            model_units=4,
            reward_bins=(),
            horizon=2,
            channels=(4, 4),
            kernels=(8, 4),
            strides=(4, 2),
            units_lstm=8,
            units=10,
            rollout_units=8,
        ),
    },
    "ddpg": {
        "paper": {},
        # Minutes on one core, for tasks of Pendulum's size: narrow nets, faster targets and actor, no decay.
        "laptop": dict(
            steps=10_000,
            units=(64, 64),
            batch_size=128,
            tau=0.005,
            actor_lr=1e-3,
            critic_decay=0.0,
        ),
        "debug": VECTORS_DEBUG,
    },
    "td3": {
        "paper": {},
        "released": dict(units=(256, 256), batch_size=256, actor_lr=3e-4, critic_lr=3e-4, prefill=25_000),
        "laptop": dict(steps=10_000, prefill=1_000, units=(64, 64), batch_size=128),
        "debug": VECTORS_DEBUG,
    },
    "sac": {
        "paper": {},
        "laptop": dict(
            steps=10_000, units=(64, 64), batch_size=128, actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3
        ),
        "debug": VECTORS_DEBUG,
    },
    "tdm": {
        "paper": {},
        # The released examples' other tasks
        "reacher": dict(max_tau=15, reward_scale=100.0),
        "pusher": dict(max_tau=5, train_updates=5),
        "ant": dict(max_tau=49, train_updates=5),
        # Minutes on one core: a layer width of 64, a fifth of the updates, faster targets and actor, more noise.
        "laptop": dict(
            steps=4_000,
            prefill=500,
            train_updates=5,
            units=(64, 64),
            max_tau=9,
            reward_scale=1.0,
            target_rate=0.01,
            actor_lr=1e-3,
            noise_sigma=0.2,
        ),
        "debug": dict(
            units=(8, 8),
            max_tau=3,
            target_rate=0.1,
            steps=400,
            prefill=100,
            train_every=20,
            train_updates=2,
            batch_size=5,
        ),
    },
    "her": {
        "paper": {},
        # Flipping bits: a layer of 256, eight updates for an episode of about 15 steps.
        "bits": dict(
            steps=90_000,
            prefill=1_500,
            train_every=15,
            train_updates=8,
            units=(256,),
            target_every=8,
            normalize=False,
        ),
        # FetchReach-v4 in a minute: the authors' cycle of two episodes and 40 updates, narrower.
        "reach": dict(
            steps=10_000,
            prefill=200,
            train_every=100,
            batch_size=256,
            units=(128, 128),
            epsilon=0.3,
            exploration_noise=0.2,
        ),
        "laptop": dict(steps=10_000, prefill=500, train_every=50, units=(64, 64)),
        "td3": dict(
            critics=2, delay=2, target_noise=0.2, target_every=2, target_rate=0.005
        ),  # SB3's and TD3's
        "debug": dict(
            units=(8, 8),
            target_rate=0.1,
            target_every=2,
            steps=400,
            prefill=100,
            train_every=20,
            train_updates=2,
            batch_size=5,
        ),
    },
    "planet": {
        "paper": {},
        # App. A: the action repeat of each task
        "cartpole_swingup": dict(action_repeat=8),
        "reacher_easy": dict(action_repeat=4),
        "cheetah_run": dict(action_repeat=4),
        "finger_spin": dict(action_repeat=2),
        "cup_catch": dict(action_repeat=4),
        "walker_walk": dict(action_repeat=2),
        # Dreamer's laptop world below, and a twentieth of the search: enough for a task or two with one action.
        "laptop": dict(
            depth=8,
            reward_units=200,
            reward_layers=2,
            steps=8_000,
            prefill=2_000,
            pretrain=300,
            train_every=200,
            train_updates=50,
            batch_size=16,
            batch_length=16,
            free_nats=1.0,
            lr=2e-3,
            decay_after=1_200,
            decay_updates=600,
            candidates=100,
            elites=10,
            iterations=5,
        ),
        "debug": dict(
            **{k: v for k, v in DEBUG.items() if k != "units"},
            reward_units=10,
            reward_layers=1,
            horizon=3,
            candidates=8,
            elites=2,
            iterations=2,
        ),
    },
    "dreamer_v1": {
        "paper": {},
        "discrete": dict(  # App. A: Atari and DeepMind Lab
            horizon=10, kl_scale=0.1, reward_transform="tanh", cont=True, action_repeat=4
        ),
        # Two cores, no GPU. Less arithmetic: narrow nets, short chunks, fewer dreams. More updates per env step, on
        # a world that is learned first. Free nats of 3 would leave the prior of so small a world untrained, and a
        # shorter sight (gamma 0.95) keeps the first, wrong values from driving the actor into its corners; an actor
        # that is paid to stay unsure comes out of them again. A fast model learns soon, then sways: it slows down.
        "laptop": dict(
            depth=8,
            units=200,
            steps=10_000,
            prefill=2_000,
            pretrain=300,
            train_every=200,
            train_updates=50,
            batch_size=16,
            batch_length=16,
            starts=64,
            free_nats=1.0,
            discount=0.95,
            entropy_scale=0.02,
            model_lr=2e-3,
            actor_lr=8e-5,
            critic_lr=3e-4,
            decay_after=1_750,
            decay_updates=600,
        ),
        # Over laptop, for the suite's tasks of 1,000 env steps: PlaNet's repeat for the cart-pole, a longer sight, a
        # cheaper KL so that more of the picture is kept, and an actor that starts near zero: else it learns to push
        # the cart to one side, which beats chance, and stays there. The actor reads detached features (as in the
        # paper), so its gradient is that of actions fixed beforehand, and a pole that stands up falls away from them:
        # 6 decisions of 8 env steps are 0.5 s (the paper's 15 of 2: 0.3 s). Begun with 9 or 15 it stays lower.
        "laptop_dmc": dict(
            action_repeat=8,
            steps=300_000,
            prefill=5_000,
            train_every=1_000,
            train_updates=40,
            kl_scale=0.1,
            horizon=6,
            starts=200,
            discount=0.97,
            init_std=1.0,
            mean_scale=2.0,
            decay_after=7_500,
            decay_updates=4_000,
            actor_lr=2e-4,
            critic_lr=1e-3,
        ),
        "debug": dict(**DEBUG, horizon=3),
    },
    "dreamer_v2": {
        "paper": {},  # Atari
        "dmc": dict(  # the released code's values for control from pixels
            action_repeat=2,
            steps=1_000_000,
            prefill=2_000,
            pretrain=100,
            train_every=10,
            deter=200,
            kl_scale=1.0,
            free_nats=1.0,
            reward_transform="none",
            cont=False,
            discount=0.99,
            rho=0.0,
            entropy_scale=1e-4,
            model_lr=3e-4,
            actor_lr=8e-5,
            critic_lr=8e-5,
        ),
        # Two cores, no GPU: narrow nets, short chunks; the rest as for control. Not tuned to a score.
        "laptop": dict(
            action_repeat=2,
            steps=40_000,
            prefill=2_000,
            pretrain=100,
            train_every=10,
            batch_length=16,
            depth=8,
            stoch=16,
            classes=16,
            deter=200,
            units=200,
            kl_scale=1.0,
            free_nats=1.0,
            reward_transform="none",
            cont=False,
            discount=0.99,
            rho=0.0,
            entropy_scale=1e-4,
            model_lr=1e-3,
            actor_lr=2e-4,
            critic_lr=4e-4,
        ),
        "debug": dict(**DEBUG, classes=4, layers=1, horizon=4),
    },
    "dreamer_v3_2023": {
        "paper": {},
        "xs": v3_2023_size(256, 24, 256, 1),
        "s": v3_2023_size(512, 32, 512, 2),
        "m": v3_2023_size(1024, 48, 640, 3),
        "l": v3_2023_size(2048, 64, 768, 4),
        "xl": v3_2023_size(4096, 96, 1024, 5),
        # The release's settings for each suite; for control, the paper's steps. The one for vectors keeps the default's
        # layers to read and write them; over it, ``s`` gives the paper's.
        "dmc_proprio": dict(
            deter=512,
            depth=32,
            units=512,
            layers=2,
            pixels=False,
            action_repeat=2,
            steps=500_000,
            prefill=2_048,
            train_ratio=512.0,
        ),
        "dmc_vision": dict(
            **v3_2023_size(512, 32, 512, 2), action_repeat=2, prefill=2_048, train_ratio=512.0
        ),
        # 8 environments (--envs 8)
        "atari": dict(action_repeat=4, steps=220_000_000, prefill=4_096, train_ratio=64.0),
        "atari100k": dict(  # one environment
            **v3_2023_size(512, 32, 512, 2),
            action_repeat=4,
            steps=600_000,
            prefill=4_096,
            train_ratio=1024.0,
        ),
        "crafter": dict(train_ratio=512.0),  # one environment
        # Two cores, no GPU: less than the smallest size, a quarter of the rows in an update, and one update for every
        # four decisions. Larger rates, because the run is short. Not trained to a score yet.
        "laptop": dict(
            **v3_2023_size(256, 8, 128, 1),
            stoch=16,
            classes=16,
            action_repeat=2,
            steps=120_000,
            prefill=2_000,
            batch_size=8,
            batch_length=32,
            train_ratio=64.0,
            model_lr=4e-4,
            actor_lr=1e-4,
            critic_lr=1e-4,
        ),
        "debug": dict(
            **v3_2023_size(16, 2, 8, 1),
            stoch=4,
            classes=4,
            bins=31,
            horizon=3,
            steps=1_200,
            prefill=200,
            pretrain=0,
            train_ratio=0.8,
            batch_size=5,
            batch_length=8,
            model_lr=1e-2,
            actor_lr=1e-2,
            critic_lr=1e-2,
        ),
    },
    "dreamer_v3": {
        "paper": {},
        "1m": v3_size(512),
        "12m": v3_size(2048),
        "25m": v3_size(3072),
        "50m": v3_size(4096),
        "100m": v3_size(6144),
        "200m": v3_size(8192),
        "400m": v3_size(12288),
        # The newest release's settings for each suite; 16 environments (--envs 16) but where one is named
        "dmc_proprio": dict(**v3_size(512), pixels=False, train_ratio=1024.0),
        "dmc_vision": dict(train_ratio=256.0),
        "atari": dict(image_size=96, action_repeat=4, train_ratio=32.0, steps=204_000_000),
        "atari100k": dict(action_repeat=4, train_ratio=256.0, steps=440_000),  # one environment
        "crafter": dict(train_ratio=512.0),  # one environment
        "dmc_2024": dict(**v3_size(2048), action_repeat=2, train_ratio=512.0),  # the article's tables
        # Two cores, no GPU: the smallest size, a quarter of the rows in an update, in short sequences, and one update
        # for every two decisions where the release makes one for each: so a ratio of 128, an eighth of the release's,
        # that costs an eighth of its arithmetic per decision. The repeat and the discount bring the end nearer, in
        # decisions; the large rate and standardised vectors are for a run that is short.
        "laptop": dict(
            **v3_size(512),
            action_repeat=4,
            steps=150_000,
            batch_size=16,
            batch_length=16,
            train_ratio=128.0,
            discount=0.99,
            standardize=True,
            lr=1e-3,
            warmup=100,
        ),
        "debug": dict(
            deter=16,
            hidden=8,
            stoch=4,
            classes=4,
            blocks=2,
            depth=2,
            units=8,
            bins=31,
            horizon=3,
            steps=1_200,
            prefill=200,
            train_ratio=0.8,
            batch_size=5,
            batch_length=8,
            lr=1e-2,
            warmup=0,
        ),
    },
    "daydreamer": {
        "paper": {},  # the A1
        "arm": dict(
            deter=512, entropy_target=0.4, prefill=2_000, steps=60_000
        ),  # UR5 and XArm; the UR5's eight hours
        "ball": dict(deter=512, entropy_target=0.4, prefill=1_000, steps=15_000),  # Sphero; two hours
        # Two cores, no GPU: narrow nets, short chunks. Not tuned to a score.
        "laptop": dict(
            depth=8,
            stoch=16,
            classes=16,
            deter=128,
            units=128,
            layers=2,
            prior_layers=1,
            batch_size=16,
            batch_length=16,
            horizon=10,
            prefill=2_000,
            lr=5e-4,
        ),
        "debug": dict(
            **{k: v for k, v in DEBUG.items() if k not in ("stoch", "units")},
            stoch=3,
            classes=4,
            units=10,
            layers=1,
            prior_layers=1,
            horizon=3,
        ),
    },
    "world_models": {
        "paper": {},  # CarRacing
        "take_cover": dict(  # the released code's values for Doom
            random_policy="held",
            shortest=100,
            latents=64,
            v_updates=308_000,
            units=512,
            restart=True,
            m_updates=24_400,
            m_length=500,
            m_lr_decay=0.99999,
            reads="zch",
            bias=False,
            one_sided=(),
            evolve_in="dream",
            temperature=1.15,
        ),
        # The table's other controllers (Sec. "Car Racing Experiment")
        "z": dict(reads="z"),
        "z_hidden": dict(reads="z", hidden=40),
        # Two cores, no GPU: the same networks and losses, fewer pictures, updates and rollouts.
        "laptop": dict(
            rollouts=200,
            v_updates=6_000,
            m_updates=2_000,
            m_batch=32,
            m_length=250,
            population=16,
            trials=4,
            generations=40,
            eval_generations=10,
        ),
        "take_cover_laptop": dict(
            rollouts=1_000,
            depth=16,
            v_updates=12_000,
            v_batch=32,
            v_lr=5e-4,
            m_updates=1_500,
            m_batch=50,
            m_length=100,
            population=64,
            trials=16,
            generations=24,
            eval_generations=6,
        ),
        "debug": dict(
            rollouts=4,
            depth=2,
            latents=4,
            v_updates=3,
            v_batch=8,
            units=8,
            rewards=True,
            m_updates=4,
            m_batch=2,
            m_length=8,
            one_sided=(),
            population=4,
            trials=2,
            generations=2,
            eval_generations=1,
            quick_episodes=2,
            final_episodes=3,
            dream_steps=20,
            starts=8,
        ),
    },
}


def agent_module(name: str) -> Any:
    """The file of an agent, imported when it is asked for."""
    return importlib.import_module(AGENTS[known(name, AGENTS, "agent")][0])


def agent_class(name: str) -> Any:
    return getattr(agent_module(name), AGENTS[name][1])


def config_class(name: str) -> Any:
    return agent_module(name).Config


def resolve(agent: str, presets: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Any:
    """An agent's Config: the paper's values, then each preset, then single fields.

    Raises ``ReverieError`` for names that do not exist, and for a value that is not among those of its field.
    """
    cls = config_class(agent)
    fields = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for preset in presets:
        values |= PRESETS[agent][known(preset, PRESETS[agent], f"preset of {agent}")]
    for name, value in (overrides or {}).items():
        values[known(name, fields, f"setting of {agent}")] = value
    hints = get_type_hints(cls)
    for name, value in values.items():
        if get_origin(hints[name]) is Literal and value not in get_args(hints[name]):
            choices = ", ".join(map(repr, get_args(hints[name])))
            raise ReverieError(f"{name} of {agent} must be one of {choices}, not {value!r}")
    return cls(**values)


def known(name: str, names, what: str) -> str:
    """``name`` if it is one of ``names``; else a sentence with the closest."""
    if name in names:
        return name
    close = difflib.get_close_matches(name, sorted(names), 3, 0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(sorted(names))}"
    raise ReverieError(f"there is no {what} called {name!r}; {hint}")
