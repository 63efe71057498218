"""Each layer of the image encoder and decoder, ours and PyTorch's own, as a share of the matrix-product rate.

    python benchmarks/layers.py [--depth 32] [--images 150] [--threads 1] [--rounds 4] [--faults]

"ours" is ``reverie.nets``; "stock" is ``torch.nn`` in its channels-last form, here its faster one. They
take turns, and the best round counts. On one thread the processor's time is measured, so that a neighbour
costs little; on more, the wall clock.

What ``reverie.nets`` does differently, and what it brought on one core of an AVX-512 EPYC, in milliseconds of
one layer (depth 32, 256 images, memory kept):

- dense and deconv1, two linear maps in a row: PyTorch's transposed convolution of one pixel takes 2,970 for
  1,024 images forward and backward, the same as a matrix product 258, the two matrices multiplied first 154;
- deconv4 has three output channels where a vector has sixteen lanes: the four phases of its output are twelve
  channels of one plain 3 x 3 convolution, shuffled afterwards; forward 28 instead of 92;
- the gradient to the bias is summed apart: together with it oneDNN takes 132 instead of 68 for the kernel's
  gradient of deconv3, 62 instead of 31 for deconv2 (both are halves of a
  run of 512 images), 12 instead of 10 for conv1;
- where width and kernel are even, two neighbouring pixels are one of twice the channels, which is a view;
  deconv3 forward 63 instead of 68, at depth 16 21 instead of 26, at depth 8 7 instead of 13;
- fresh memory costs a page fault every 4 KiB: encoder and decoder on 1,250 images, forward and backward, take
  5.1 s, and 3.8 s where the C library keeps what is freed (``keep_memory``), with 1.7 GB instead of 1.2. Both
  sides keep it here unless ``--faults`` asks otherwise.

Tried and left out: windows copied to a matrix and multiplied in blocks that fit the cache (faster for conv4
alone, by 30 % over its three passes); the columns of a transposed convolution folded by hand (no gain); one
node for a whole GRU step (its time is in the products, and a node computes gradients to weights even when nobody asks).
"""

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import rows
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverie.nets import Conv, Deconv, ImageDecoder, ImageEncoder

FEAT = 230


def keep_memory() -> None:
    """Let the C library reuse what is freed, instead of giving it back and asking anew. Linux only."""
    if sys.platform == "linux":
        mmap_threshold, trim_threshold = -3, -1
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def best(calls: list[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """The shortest time of each call in seconds; they take turns, so that a busy moment meets them all."""
    found = [float("inf")] * len(calls)
    for _ in range(rounds + 1):
        for i, call in enumerate(calls):
            start = clock()
            call()
            found[i] = min(found[i], clock() - start)
    return found


class Stock(nn.Module):
    """One layer of torch.nn on "n h w c" images, in its channels-last form."""

    def __init__(self, inputs: int, outputs: int, kernel: int, transposed: bool) -> None:
        super().__init__()
        kind: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.layer = kind(inputs, outputs, kernel, 2)
        self.layer.weight.data = self.layer.weight.data.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class StockDecoder(nn.Module):
    def __init__(self, depth: int, channels: int = 3) -> None:
        super().__init__()
        widths = [32 * depth, 4 * depth, 2 * depth, depth, channels]
        self.dense = nn.Linear(FEAT, 32 * depth)
        self.layers = nn.ModuleList(
            Stock(a, b, k, True) for (a, b), k in zip(pairwise(widths), (5, 5, 6, 6), strict=True)
        )

    def forward(self, feat: Tensor) -> Tensor:
        x = self.dense(feat)[:, None, None]
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


class StockEncoder(nn.Module):
    def __init__(self, depth: int, channels: int = 3) -> None:
        super().__init__()
        widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        self.layers = nn.ModuleList(Stock(a, b, 4, False) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.flatten(1)


def passes(module: nn.Module, x: Tensor, learned_input: bool) -> list[Callable[[], object]]:
    """Forward, and backward to the weights and, if something below learns, to the input."""
    x = x.requires_grad_(learned_input)
    wanted = [*module.parameters(), *([x] if learned_input else [])]
    y = module(x)
    grad = torch.randn(y.shape)
    return [lambda: module(x), lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)]


def cases(d: int) -> list[tuple[str, nn.Module, nn.Module, tuple[int, ...], int, bool]]:
    """Name, ours, stock, shape of one input, multiply-adds of one image forward, whether its input learns."""
    layers: list[tuple[str, nn.Module, nn.Module, tuple[int, ...], int, bool]] = []
    sides, widths = (64, 31, 14, 6, 2), (3, d, 2 * d, 4 * d, 8 * d)
    for i, ((s, t), (a, b)) in enumerate(zip(pairwise(sides), pairwise(widths), strict=True)):
        work = t * t * 16 * a * b
        layers.append((f"conv{i + 1}", Conv(a, b, 4), Stock(a, b, 4, False), (s, s, a), work, i > 0))
    encoder = sum(layer[4] for layer in layers)
    for i, (s, k, a, b) in enumerate([(5, 5, 4 * d, 2 * d), (13, 6, 2 * d, d), (30, 6, d, 3)]):
        work = s * s * k * k * a * b
        layers.append((f"deconv{i + 2}", Deconv(a, b, k), Stock(a, b, k, True), (s, s, a), work, True))
    decoder = sum(layer[4] for layer in layers) - encoder + 32 * d * (FEAT + 25 * 4 * d)
    image = (64, 64, 3)
    layers.append(("encoder", ImageEncoder(image, d), StockEncoder(d), image, encoder, False))
    layers.append(("decoder", ImageDecoder(FEAT, image, d), StockDecoder(d), (FEAT,), decoder, True))
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--faults", action="store_true", help="leave the C library's memory as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.faults:
        keep_memory()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    n, size = options.images, 1024
    square = torch.randn(size, size)

    print(f"depth {options.depth}, {n} images, {options.threads} thread(s); share of the matrix-product rate")
    print(
        f"{'layer':10}{'GFLOP':>8}{'ours: forward':>16}{'backward':>10}{'stock: forward':>17}{'backward':>10}"
    )
    found = []
    for name, ours, stock, shape, work, learned in cases(options.depth):
        x = torch.randn(n, *shape)
        calls = [*passes(ours, x.clone(), learned), *passes(stock, x.clone(), learned)]
        *times, product = best([*calls, lambda: square @ square], options.rounds, clock)
        rate = 2 * size**3 / product
        first = 2 * n * (31 * 31 * 48 * options.depth) if name == "encoder" else 0  # its image learns nothing
        forward = 2 * n * work
        backward = 2 * forward - first if learned or first else forward
        share = [flops / (t * rate) for flops, t in zip([forward, backward] * 2, times, strict=True)]
        print(
            f"{name:10}{(forward + backward) / 1e9:8.1f}"
            f"{share[0]:15.0%} {share[1]:9.0%} {share[2]:16.0%} {share[3]:9.0%}   at {rate / 1e9:.0f} GFLOP/s"
        )
        found.append(
            {
                "what": f"{name}, depth {options.depth}, {n} images, forward and backward",
                "ours": round(sum(times[:2]), 6),
                "peer": round(sum(times[2:]), 6),
                "floor": round((forward + backward) / rate, 6),
                "unit": "s",
                "peer_version": f"torch.nn {torch.__version__}, channels last",
                "threads": options.threads,
            }
        )
    rows.write("layers", found)


if __name__ == "__main__":
    main()
