#!/usr/bin/env python3
"""Trains the starter model for photographs of CIFAR-10's ten classes, from scratch, on a CPU.

    python tools/train_starter.py --data ../shared/data --out starter

takes about 40 minutes on two idle cores (Zen 4; bfloat16 in hardware helps). tools/starter.log has the commands and the
log of the run that made the shipped file; the defaults are that run without its detours. It writes into ``starter``:

    log.jsonl         one line an epoch: size, augmentation, learning rate, loss, accuracy on held-out pictures, seconds
    checkpoint.pt     all that --resume needs; written after every epoch, never half
    starter_fp32.fmn  the averaged weights at the end
    starter.fmn       the same in int8: what the package has
    quantization.txt  how well they agree
    report.json       accuracy and confusion matrix on the test pictures

``--data`` is a folder with cifar10_train.npz and cifar10_test.npz, each with the arrays jpeg (the bytes of all files),
offsets (n + 1), labels and names. ``--export`` writes all but the first two from the checkpoint as it is,
or with ``--mean-with`` from the mean of its averaged weights and those of other checkpoints of the same run: after a
learning rate that fell, rose and fell again, the mean of both ends is better than either (Izmailov and others, 2018).

Needs PyTorch. Equal options give equal weights, also when the run was cut into parts with --resume. Options of the
recipe may be changed by --resume, for the epochs to come, where they do not change the network or what is held out; the
learning rate falls to 0 at the end of --epochs.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, get_type_hints

import torch
from starter_export import CALIBRATION, export, predict, write_report
from starter_muon import Muon
from starter_network import Network, starter_plan
from starter_pictures import augment, enlarge, normalise, read
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """What decides the result. A checkpoint holds it; --resume refuses to change what was already used."""

    width: Annotated[float, "multiplier of the channels"] = 1.0
    epochs: Annotated[int, "epochs in all"] = 24
    decay: Annotated[int, "the last epochs, in which the learning rate falls to 0"] = 21
    strength: Annotated[float, "of the augmentation, 0 to 1"] = 0.5
    final_strength: Annotated[float, "to which it falls with the learning rate"] = 0.2
    warmup: Annotated[int, "the first epochs, in which the learning rate rises from 0"] = 1
    size: Annotated[int, "height and width of the input, pixels"] = 64
    sizes: Annotated[str, "sizes to train with: SIZE:EPOCHS SIZE:EPOCHS ... SIZE; the first need less detail"] = (
        "48:18 64"
    )
    batch: Annotated[int, "pictures a step"] = 256
    part: Annotated[int, "pictures a thread takes at a time; batch norm sees these, not the batch"] = 64
    lr: Annotated[float, "learning rate of the filters: by how much of its length a step changes one"] = 0.02
    lr_rest: Annotated[float, "learning rate of all other parameters, of Adam"] = 0.002
    momentum: Annotated[float, "of the filters"] = 0.9
    smoothing: Annotated[float, "of the labels"] = 0.1
    average: Annotated[float, "what the exponential average of the weights keeps at a step"] = 0.998
    held_out: Annotated[int, "training pictures that are only used to measure"] = 2000
    seed: Annotated[int, "of weights, order and augmentation"] = 0


# --- training -------------------------------------------------------------------------------------------


def rise(recipe: Recipe, progress: float) -> float:
    """0..1 in the first epochs; ``progress`` counts epochs."""
    return min(1.0, progress / recipe.warmup) if recipe.warmup else 1.0


def fall(recipe: Recipe, progress: float) -> float:
    """1 until the last ``decay`` epochs, and 0 at their end."""
    return max(0.0, min(1.0, (recipe.epochs - progress) / recipe.decay)) if recipe.decay else 1.0


def size_of(recipe: Recipe, epoch: int) -> int:
    """The size of the pictures of an epoch, from 0."""
    size, end = recipe.size, 0
    for word in recipe.sizes.split():
        text, _, epochs = word.partition(":")
        size, end = int(text), end + int(epochs or sys.maxsize)
        if epoch < end:
            break
    return size


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
        # Every picture is shown from both sides in turn, which teaches more than chance does (Jordan, 2024).
        self.sides = torch.randint(2, (len(rest),), generator=torch.Generator().manual_seed(recipe.seed))
        self.net = Network(starter_plan(recipe.width), classes)
        self.flat = torch.cat([p.detach().flatten() for p in self.net.parameters()])
        self.muon = Muon(self.flat, [p.shape for p in self.net.parameters()], recipe.momentum)
        self.average = self.flat.clone()
        self.free: SimpleQueue[Network] = SimpleQueue()
        for _ in range(threads):
            net = copy.deepcopy(self.net)
            point(net, self.flat)
            self.free.put(net)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def part(self, chosen: Tensor, size: int, strength: float, seed: int) -> tuple[Tensor, float]:
        """The gradient of the summed loss of some pictures, and that sum."""
        net = self.free.get()
        try:
            flip = (self.sides[chosen] + self.epoch) % 2 == 1
            x = augment(self.pixels[chosen], size, torch.Generator().manual_seed(seed), strength, flip)
            with torch.autocast("cpu", torch.bfloat16):
                y = net(x)
            smoothing = self.recipe.smoothing
            loss = F.cross_entropy(y.float(), self.labels[chosen], reduction="sum", label_smoothing=smoothing)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            return torch.cat([g.flatten() for g in gradients]), loss.item()
        finally:
            self.free.put(net)

    def step(self, chosen: Tensor, size: int, speed: float, seed: int, strength: float) -> float:
        """One batch, with ``speed`` times the recipe's learning rates. Returns the mean loss."""
        r = self.recipe
        parts = torch.split(chosen, r.part)
        tasks = [self.pool.submit(self.part, part, size, strength, seed + i) for i, part in enumerate(parts)]
        results = [task.result() for task in tasks]
        gradient = results[0][0]
        for other, _ in results[1:]:
            gradient += other
        self.muon.step(gradient / len(chosen), speed * r.lr, speed * r.lr_rest, self.pool)
        self.average.lerp_(self.flat, 1 - r.average)
        return sum(loss for _, loss in results) / len(chosen)

    def run_epoch(self) -> dict[str, float]:
        r, started = self.recipe, time.monotonic()
        size = size_of(r, self.epoch)
        seed = (r.seed * 1000 + self.epoch) * 10**7
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        steps, total, speed, strength = len(self.labels) // r.batch, 0.0, 0.0, 0.0
        for i in range(steps):
            progress = self.epoch + (i + 1) / steps
            speed = min(rise(r, progress), fall(r, progress))
            strength = r.final_strength + (r.strength - r.final_strength) * fall(r, progress)
            batch = order[i * r.batch : (i + 1) * r.batch]
            total += self.step(batch, size, speed, seed + 1 + i * r.batch, strength)
            if (i + 1) % 20 == 0:
                print(f"epoch {self.epoch + 1}: step {i + 1} of {steps}, loss {total / (i + 1):.3f}", file=sys.stderr)
        self.epoch += 1
        right = predict(self.averaged(), self.held_pixels, r.size) == self.held_labels
        return {
            "epoch": self.epoch,
            "size": size,
            "strength": round(strength, 3),
            "lr": round(speed * r.lr, 6),
            "loss": round(total / steps, 4),
            "held_out": round(100 * float(right.float().mean()), 2),
            "seconds": round(time.monotonic() - started, 1),
        }

    def averaged(self, pictures: int = 1024) -> Network:
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
        state = {"flat": self.flat, "state": self.muon.state, "average": self.average}
        whole = path.with_suffix(".part")
        torch.save({**state, "epoch": self.epoch, "steps": self.muon.steps, "recipe": asdict(self.recipe)}, whole)
        os.replace(whole, path)  # atomic: a run that is killed leaves the old checkpoint or the new one

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises SystemExit where its recipe is another one."""
        state = torch.load(path, weights_only=True)
        was, now = state["recipe"], asdict(self.recipe)
        fixed = {"width", "size", "part", "held_out", "seed"}  # all else decides nothing but the epochs to come
        changed = {key for key in fixed if was.get(key) != now[key]}
        if changed:
            options = ", ".join(f"--{key.replace('_', '-')} {was.get(key)}" for key in sorted(changed))
            raise SystemExit(f"{path} was made with {options} and cannot be continued with other values")
        self.flat.copy_(state["flat"])
        self.muon.state.copy_(state["state"])
        self.average.copy_(state["average"])
        self.epoch, self.muon.steps = state["epoch"], state["steps"]

    def mean_with(self, paths: list[Path]) -> None:
        """The averaged weights become their mean with those of other checkpoints of the same network."""
        for path in paths:
            self.average += torch.load(path, weights_only=True)["average"]
        self.average /= 1 + len(paths)


def point(net: nn.Module, flat: Tensor) -> None:
    """Make the parameters views of ``flat``."""
    parameters = list(net.parameters())
    for p, values in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        p.data = values.view_as(p)


# --- results --------------------------------------------------------------------------------------------


def finish(trainer: Trainer, out: Path, data: Path, names: list[str]) -> None:
    """Writes the models and report.json, and prints the confusion matrix on the test pictures."""
    pixels, labels, _ = read(data / "cifar10_test.npz")
    net = trainer.averaged(pictures=10_000)
    calibration = trainer.pixels[:CALIBRATION]
    right = export(net, trainer.recipe.size, calibration, (pixels, labels), names, out)
    write_report(
        {"recipe": asdict(trainer.recipe), "epochs": trainer.epoch, "labels": names, **right}, out / "report.json"
    )


# --- command line ---------------------------------------------------------------------------------------


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10_train.npz and cifar10_test.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the log, the checkpoint and the results")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--export", action="store_true", help="no training: write the results from the checkpoint")
    parser.add_argument("--mean-with", type=Path, nargs="+", default=[], help="with --export: other checkpoints")
    parser.add_argument("--threads", type=int, default=2, help="pictures are shared out to them (default: %(default)s)")
    recipe = parser.add_argument_group("recipe", "what decides the result")
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
    if options.export:
        trainer.mean_with(options.mean_with)
    while trainer.epoch < recipe.epochs and not options.export:
        line = json.dumps(trainer.run_epoch())
        trainer.save(checkpoint)
        with open(options.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)
    finish(trainer, options.out, options.data, names)


if __name__ == "__main__":
    keep_memory()
    main(sys.argv[1:])
