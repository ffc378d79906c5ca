"""The training loop that all four scripts share: schedule, average of the weights, log of losses, and resuming.

Does not know what is trained. Every step draws its random numbers from a generator seeded by (seed, step), so that a
run that was stopped and resumed sees the same data as one that was not.
"""

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Passes = Tensor | tuple[Tensor, ...]

WARM_UP_STEPS = 60
LOG_EVERY = 50
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Options:
    """What a training script is told. It ends after `steps` steps or `minutes` minutes, whichever is first."""

    out: Path
    device: torch.device
    steps: int
    minutes: float
    batch: int
    seed: int
    rate: float


def parser(description: str, *, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    """The options of every script, with this script's defaults."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--out", type=Path, required=True, help="folder for the model, its log and its checkpoint")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--steps", type=int, default=steps)
    arguments.add_argument("--minutes", type=float, default=90.0)
    arguments.add_argument("--batch", type=int, default=batch)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--rate", type=float, default=rate, help="the largest learning rate")
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads")
    return arguments


def options(arguments: argparse.Namespace) -> Options:
    """The options that `parser` read; makes the folder, and sets up torch."""
    torch.set_num_threads(arguments.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return Options(
        arguments.out,
        torch.device(arguments.device),
        arguments.steps,
        arguments.minutes,
        arguments.batch,
        arguments.seed,
        arguments.rate,
    )


class Trainer:
    """Iterate over it for the steps; call `update` with each step's loss.

    `modules` holds the weights being trained. After the last step, `use_average` puts their moving average in place.
    """

    def __init__(self, modules: nn.Module, chosen: Options, *, average: float = 0.995) -> None:
        self._options = chosen
        self._parameters = {name: value for name, value in modules.named_parameters() if value.requires_grad}
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._decay = average
        self._fused = chosen.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=chosen.rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=self._fused
        )
        self.step = 0
        self.seconds = 0.0
        self._losses = torch.zeros((), device=chosen.device)
        self._checkpoint = chosen.out / "checkpoint.safetensors"
        self._log = chosen.out / "losses.csv"
        if self._checkpoint.is_file():
            self._resume()
        else:
            self._log.write_text("step,seconds,loss\n", encoding="utf-8")

    def __iter__(self) -> Iterator[torch.Generator]:
        """The generator of each step, until the time or the steps are over."""
        saved = began = time.monotonic() - self.seconds
        while (progress := self.progress) < 1:
            warm = min(1.0, (self.step + 1) / WARM_UP_STEPS)
            rate = self._options.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            yield self.generator(self.step)
            self.seconds = time.monotonic() - began
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                self._save()
                saved = time.monotonic()
        self._save()

    @property
    def progress(self) -> float:
        """How much of the steps or of the time is over, 0 to 1."""
        return max(self.step / self._options.steps, self.seconds / 60 / self._options.minutes)

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of a step."""
        return torch.Generator(self._options.device).manual_seed(self._options.seed * 10_000_019 + step)

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.step()
        self.step += 1
        keep = min(self._decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1 - keep)
            self._losses += loss.detach()
        if self.step % LOG_EVERY == 0:
            mean = float(self._losses) / LOG_EVERY
            self._losses.zero_()
            if not math.isfinite(mean):
                raise SystemExit(f"the loss of step {self.step} is {mean}")
            with self._log.open("a", encoding="utf-8", newline="") as log:
                csv.writer(log, lineterminator="\n").writerow([self.step, round(self.seconds, 1), round(mean, 5)])
            if self.step % (10 * LOG_EVERY) == 0:
                print(f"step {self.step} {self.seconds:.0f} s loss {mean:.4f}", flush=True)

    def use_average(self) -> None:
        """Put the moving average of the weights in place of the weights."""
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(self._average[name])

    def _save(self) -> None:
        tensors = {f"average.{name}": value for name, value in self._average.items()}
        for name, value in self._parameters.items():
            tensors[f"weight.{name}"] = value.detach()
            for key, moment in self._optimizer.state[value].items():
                tensors[f"{key}.{name}"] = moment
        # Double precision holds both numbers exactly.
        tensors["progress"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        part = self._checkpoint.with_suffix(".part")
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part)
        part.replace(self._checkpoint)

    def _resume(self) -> None:
        tensors = load_file(self._checkpoint, device=str(self._options.device))
        step, self.seconds = tensors["progress"].tolist()
        self.step = int(step)
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(tensors[f"weight.{name}"])
                self._average[name].copy_(tensors[f"average.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                state = {key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors}
                if state:
                    state["step"] = state["step"] if self._fused else state["step"].cpu()
                    self._optimizer.state[value] = state
        print(f"resumed at step {self.step}", flush=True)


class Replayed(nn.Module):
    """`compute`, whose forward and backward passes a GPU replays as CUDA graphs, one for each shape of the arguments.

    Models as small as these spend most of a step on launching kernels otherwise. `compute` takes and returns tensors,
    uses the weights of `modules` alone, and draws no random numbers. On a CPU it is merely called.
    """

    def __init__(self, modules: nn.Module, compute: Callable[..., Passes]) -> None:
        super().__init__()
        self.modules_used = modules
        self._compute = compute
        self._graphs: dict[tuple[torch.Size, ...], Callable[..., Passes]] = {}

    def forward(self, *arguments: Tensor) -> Passes:
        """What `compute` returns, in mixed precision; the result holds until the next call."""
        device = arguments[0].device
        # Casts of the weights must be in every graph, so they are not kept from call to call.
        with torch.autocast(device.type, torch.bfloat16, device.type == "cuda", cache_enabled=False):
            return self._compute(*arguments)

    def run(self, *arguments: Tensor) -> Passes:
        """As `forward`, from a graph where there is a GPU."""
        if arguments[0].device.type != "cuda":
            return self(*arguments)
        shapes = tuple(argument.shape for argument in arguments)
        if shapes not in self._graphs:
            samples = tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in arguments)
            one = Replayed(self.modules_used, self._compute).train()
            try:
                self._graphs[shapes] = torch.cuda.make_graphed_callables(one, samples, allow_unused_input=True)
            except RuntimeError as error:  # slower, but a training that runs
                print(f"no CUDA graph for {shapes}: {error}", flush=True)
                self._graphs[shapes] = self
        return self._graphs[shapes](*arguments)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for matrix products and convolutions on a GPU; the weights stay FP32. Many CPUs are slower with it."""
    return torch.autocast(device.type, torch.bfloat16, device.type == "cuda")
