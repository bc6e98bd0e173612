#!/usr/bin/env python3
"""Trains the starter model: a MobileNetV2 for photographs of CIFAR-10's ten classes, from scratch, on a CPU.

The shipped model was made with

    python tools/train_starter.py --data ../shared/data --out starter

in about 45 minutes on two idle cores (Zen 5). It writes into the folder ``starter``:

    log.jsonl            one line an epoch: learning rate, loss, accuracy on held-out pictures, seconds
    checkpoint.pt        all that --resume needs; written after every epoch, never half
    steady.pt            the checkpoint before the learning rate falls: copied over checkpoint.pt, it can be continued
                         with --resume and more --epochs
    starter.safetensors  the averaged weights at the end, under torchvision's names
    report.json          accuracy and confusion matrix on the test pictures

``--data`` is a folder with cifar10_train.npz and cifar10_test.npz, each with the arrays jpeg (the bytes of all files),
offsets (n + 1), labels and names. ``--export`` writes the last two files from the checkpoint as it is.

Needs PyTorch, safetensors and Pillow. Equal options give equal weights, also when the run was cut into parts with
--resume. The learning rate and the augmentation do not change until the last --decay epochs. So --epochs can be changed
by --resume up to that point, and the result is that of a run that had the new number from the start.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, get_type_hints

import torch
from starter_pictures import augment, enlarge, normalise, read
from torch import Tensor, nn
from torch.nn import functional as F

#: (widening, channels, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


@dataclass(frozen=True)
class Recipe:
    """What decides the result. A checkpoint holds it; --resume refuses to change what was already used."""

    width: Annotated[float, "multiplier of the channels"] = 0.75
    epochs: Annotated[int, "epochs in all"] = 36
    decay: Annotated[int, "the last epochs, in which the learning rate falls to 0"] = 16
    final_strength: Annotated[float, "of the augmentation, to which it falls from 1 with the learning rate"] = 0.4
    warmup: Annotated[int, "the first epochs, in which it rises from 0"] = 1
    size: Annotated[int, "height and width of the input, pixels"] = 64
    small: Annotated[int, "the same for the first epochs, which need less detail"] = 48
    small_epochs: Annotated[int, "how many those are"] = 15
    batch: Annotated[int, "pictures a step"] = 128
    part: Annotated[int, "pictures a thread takes at a time; batch norm sees these, not the batch"] = 64
    lr: Annotated[float, "learning rate of SGD with Nesterov momentum"] = 0.15
    momentum: Annotated[float, "its momentum"] = 0.9
    weight_decay: Annotated[float, "of convolutions and the classifier"] = 5e-4
    smoothing: Annotated[float, "of the labels"] = 0.1
    average: Annotated[float, "what the exponential average of the weights keeps at a step"] = 0.999
    held_out: Annotated[int, "training pictures that are only used to measure"] = 2000
    seed: Annotated[int, "of weights, order and augmentation"] = 0


# --- network --------------------------------------------------------------------------------------------


def divisible(channels: float) -> int:
    nearest = max(8, math.floor(channels / 8 + 0.5) * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def layer(ic: int, oc: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(ic, oc, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(oc)]


class Residual(nn.Module):
    def __init__(self, ic: int, oc: int, expand: int, stride: int) -> None:
        super().__init__()
        wide = ic * expand
        parts: list[nn.Module] = []
        if expand != 1:
            parts.append(nn.Sequential(*layer(ic, wide), nn.ReLU6(inplace=True)))
        parts.append(nn.Sequential(*layer(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True)))
        self.conv = nn.Sequential(*parts, *layer(wide, oc))
        self.skip = stride == 1 and ic == oc

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.skip else y


class MobileNetV2(nn.Module):
    """fastmobilenet.models' "mobilenet_v2" as a PyTorch module, with torchvision's names for the parameters."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels, head = divisible(32 * width), divisible(1280 * max(1.0, width))
        features: list[nn.Module] = [nn.Sequential(*layer(3, channels, 3, 2), nn.ReLU6(inplace=True))]
        for expand, base, repeats, stride in STAGES:
            for i in range(repeats):
                features.append(Residual(channels, divisible(base * width), expand, 1 if i else stride))
                channels = divisible(base * width)
        features.append(nn.Sequential(*layer(channels, head), nn.ReLU6(inplace=True)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(head, classes))  # torchvision has a dropout first
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


# --- training -------------------------------------------------------------------------------------------


def rise(recipe: Recipe, progress: float) -> float:
    """0..1 in the first epochs; ``progress`` counts epochs."""
    return min(1.0, progress / recipe.warmup) if recipe.warmup else 1.0


def fall(recipe: Recipe, progress: float) -> float:
    """1 until the last ``decay`` epochs, and 0 at their end."""
    return max(0.0, min(1.0, (recipe.epochs - progress) / recipe.decay)) if recipe.decay else 1.0


class Trainer:
    """All parameters are views of one vector; momentum and average are vectors beside it.

    A batch is cut into parts that threads take from a queue, each with a copy of the network that shares the
    parameters. So a thread that other programs keep from its core delays one part, where threads inside every
    operation would wait for it hundreds of times a step. The gradients are summed in the order of the parts, and
    every part has a random generator of its own: the result does not depend on the number of threads.
    """

    def __init__(self, recipe: Recipe, pixels: Tensor, labels: Tensor, classes: int, threads: int) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.epoch = recipe, 0
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(recipe.seed))
        held, rest = order[: recipe.held_out], order[recipe.held_out :]
        self.pixels, self.labels = pixels[rest], labels[rest]
        self.held_pixels, self.held_labels = pixels[held], labels[held]
        self.net = MobileNetV2(recipe.width, classes)
        self.flat = torch.cat([p.detach().flatten() for p in self.net.parameters()])
        self.momentum, self.average = torch.zeros_like(self.flat), self.flat.clone()
        # Scales, shifts and biases do not decay.
        self.decaying = torch.cat([torch.full((p.numel(),), float(p.ndim > 1)) for p in self.net.parameters()])
        self.free: SimpleQueue[MobileNetV2] = SimpleQueue()
        for _ in range(threads):
            net = copy.deepcopy(self.net)
            point(net, self.flat)
            self.free.put(net)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def part(self, chosen: Tensor, size: int, strength: float, seed: int) -> tuple[Tensor, float]:
        """The gradient of the summed loss of some pictures, and that sum."""
        net = self.free.get()
        try:
            x = augment(self.pixels[chosen], size, torch.Generator().manual_seed(seed), strength)
            smoothing = self.recipe.smoothing
            loss = F.cross_entropy(net(x), self.labels[chosen], reduction="sum", label_smoothing=smoothing)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            return torch.cat([g.flatten() for g in gradients]), loss.item()
        finally:
            self.free.put(net)

    def step(self, chosen: Tensor, size: int, lr: float, seed: int, strength: float = 1.0) -> float:
        """One batch. Returns the mean loss."""
        r = self.recipe
        parts = torch.split(chosen, r.part)
        tasks = [self.pool.submit(self.part, part, size, strength, seed + i) for i, part in enumerate(parts)]
        results = [task.result() for task in tasks]
        gradient = results[0][0]
        for other, _ in results[1:]:
            gradient += other
        gradient = (gradient / len(chosen)).addcmul_(self.flat, self.decaying, value=r.weight_decay)
        self.momentum.mul_(r.momentum).add_(gradient)
        self.flat.sub_(gradient.add_(self.momentum, alpha=r.momentum), alpha=lr)  # Nesterov's step
        self.average.lerp_(self.flat, 1 - r.average)
        return sum(loss for _, loss in results) / len(chosen)

    def run_epoch(self) -> dict[str, float]:
        r, started = self.recipe, time.monotonic()
        size = r.small if self.epoch < r.small_epochs else r.size
        seed = (r.seed * 1000 + self.epoch) * 10**7
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        steps, total, lr = len(self.labels) // r.batch, 0.0, 0.0
        for i in range(steps):
            progress = self.epoch + (i + 1) / steps
            lr = r.lr * min(rise(r, progress), fall(r, progress))
            strength = r.final_strength + (1 - r.final_strength) * fall(r, progress)
            batch = order[i * r.batch : (i + 1) * r.batch]
            total += self.step(batch, size, lr, seed + 1 + i * r.batch, strength)
        self.epoch += 1
        right = predict(self.averaged(), self.held_pixels, r.size) == self.held_labels
        return {
            "epoch": self.epoch,
            "size": size,
            "lr": round(lr, 6),
            "loss": round(total / steps, 4),
            "held_out": round(100 * float(right.float().mean()), 2),
            "seconds": round(time.monotonic() - started, 1),
        }

    def averaged(self, pictures: int = 2048) -> MobileNetV2:
        """The network with the averaged weights, and batch norm statistics of its own: those of ``pictures`` pictures
        as they are at the end, whole and without changed colours."""
        net = copy.deepcopy(self.net)
        point(net, self.average.clone())
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
        with torch.no_grad():
            for x in torch.split(self.pixels[:pictures], 512):
                net(normalise(enlarge(x, self.recipe.size)))
        return net.eval()

    def save(self, path: Path) -> None:
        state = {"flat": self.flat, "momentum": self.momentum, "average": self.average, "epoch": self.epoch}
        whole = path.with_suffix(".part")
        torch.save({**state, "recipe": asdict(self.recipe)}, whole)
        os.replace(whole, path)  # atomic: a run that is killed leaves the old checkpoint or the new one

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises SystemExit where its recipe is another one."""
        state = torch.load(path, weights_only=True)
        was, now = state["recipe"], asdict(self.recipe)
        steady = min(r["epochs"] - r["decay"] for r in (was, now))  # equal learning rates up to this epoch
        free = {"epochs", "decay", "final_strength"} if state["epoch"] <= steady else set()
        free |= {"small_epochs"} if state["epoch"] <= min(was["small_epochs"], now["small_epochs"]) else set()
        changed = {key for key in now if was.get(key) != now[key]} - free
        if changed:
            options = ", ".join(f"--{key.replace('_', '-')} {was.get(key)}" for key in sorted(changed))
            raise SystemExit(f"{path} was made with {options} and cannot be continued with other values")
        for key in ("flat", "momentum", "average"):
            getattr(self, key).copy_(state[key])
        self.epoch = state["epoch"]


def point(net: nn.Module, flat: Tensor) -> None:
    """Make the parameters views of ``flat``."""
    parameters = list(net.parameters())
    for p, values in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        p.data = values.view_as(p)


@torch.no_grad()
def predict(net: nn.Module, pixels: Tensor, size: int) -> Tensor:
    """The class of each of the uint8 pictures (n, 3, h, w)."""
    return torch.cat([net(normalise(enlarge(x, size))).argmax(1) for x in torch.split(pixels, 256)])


# --- results --------------------------------------------------------------------------------------------


def table(matrix: Tensor, names: list[str]) -> str:
    """The confusion matrix as text: a row for each true class, with the share of right answers at its end."""
    head = " " * 12 + "".join(f"{name[:5]:>6}" for name in names) + "  right"
    rows = [
        f"{name:>12}" + "".join(f"{count:6d}" for count in row.tolist()) + f"{100 * row[i] / row.sum():6.1f}%"
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return "\n".join([head, *rows])


def export(trainer: Trainer, out: Path, data: Path) -> None:
    """Writes starter.safetensors and report.json, and prints the confusion matrix on the test pictures."""
    from safetensors.torch import save_file

    pixels, labels, names = read(data / "cifar10_test.npz")
    net = trainer.averaged(pictures=10_000)
    state = {key: value.contiguous() for key, value in net.state_dict().items() if "num_batches" not in key}
    save_file(state, out / "starter.safetensors", metadata={"labels": json.dumps(names)})
    predicted = predict(net, pixels, trainer.recipe.size)
    top1 = float((predicted == labels).float().mean()) * 100
    n = len(names)
    matrix = torch.bincount(labels * n + predicted, minlength=n * n).view(n, n)
    print(table(matrix, names))
    print(f"top-1 on {len(labels)} test pictures: {top1:.2f} %")
    report = {"recipe": asdict(trainer.recipe), "epochs": trainer.epoch, "labels": names, "top1": round(top1, 2)}
    text = json.dumps({**report, "confusion": matrix.tolist()}, indent=1)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")


# --- command line ---------------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10_train.npz and cifar10_test.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the log, the checkpoint and the results")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--export", action="store_true", help="no training: write the results from the checkpoint")
    parser.add_argument("--threads", type=int, default=2, help="pictures are shared out to them (default: %(default)s)")
    recipe = parser.add_argument_group("recipe", "what decides the result; the defaults made the shipped model")
    for key, hint in get_type_hints(Recipe, include_extras=True).items():
        text = f"{hint.__metadata__[0]} (default: %(default)s)"
        recipe.add_argument(f"--{key.replace('_', '-')}", type=hint.__origin__, default=getattr(Recipe, key), help=text)
    return parser.parse_args(argv)


def keep_memory() -> None:
    """Start again with a malloc that keeps freed memory: the page faults of giving it back and taking it again for
    every activation cost half of the time (glibc reads these variables when a process starts)."""
    wanted = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}
    if sys.platform == "linux" and not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def main(argv: list[str]) -> None:
    options = parse(argv)
    torch.set_num_threads(1)
    recipe = Recipe(**{key: getattr(options, key) for key in asdict(Recipe())})
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() != (options.resume or options.export):
        advice = "give --resume, or another --out" if checkpoint.exists() else "there is nothing to resume or export"
        raise SystemExit(f"{checkpoint} {'exists' if checkpoint.exists() else 'does not exist'}; {advice}")
    options.out.mkdir(parents=True, exist_ok=True)
    pixels, labels, names = read(options.data / "cifar10_train.npz")
    trainer = Trainer(recipe, pixels, labels, len(names), options.threads)
    if checkpoint.exists():
        trainer.restore(checkpoint)
    while trainer.epoch < recipe.epochs and not options.export:
        line = json.dumps(trainer.run_epoch())
        trainer.save(checkpoint)
        if trainer.epoch == recipe.epochs - recipe.decay:
            trainer.save(options.out / "steady.pt")
        with open(options.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)
    export(trainer, options.out, options.data)


if __name__ == "__main__":
    keep_memory()
    main(sys.argv[1:])
