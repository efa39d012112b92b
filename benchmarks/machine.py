"""What the machine can do and what a run took: rates of matrix multiplication, memory, names."""

from __future__ import annotations

import platform
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


def synchronize(device):
    """Wait for a CUDA device's queue; elsewhere nothing is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


#: ``wall`` is what a user waits. ``cpu`` is the process's own time: on one thread, and on a machine that others
#: use too, it compares methods fairly where the wall clock can't.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(function, device, clock="wall"):
    """Return how long ``function`` takes and what it returns."""
    now = CLOCKS[clock]
    synchronize(device)
    start = now()
    result = function()
    synchronize(device)
    return now() - start, result


def linears_of_layers(model):
    """Return the linear modules of every decoder layer, layer by layer."""
    return [
        [module for module in model.adapter.layer(layer).modules() if isinstance(module, nn.Linear)]
        for layer in range(model.n_layers)
    ]


@torch.inference_mode()
def multiply_rate(model, rows, clock="wall", repeats=5):
    """Measure the rate of matrix multiplication on the model's own layer shapes, in flop/s.

    Every linear module of every layer is applied in turn to ``rows`` random rows, with the model's weights
    and the threads that are set: nothing else of the layer is run. The best of ``repeats`` passes counts.
    """
    layers = linears_of_layers(model)
    widths = {module.in_features for layer in layers for module in layer}
    inputs = {width: torch.randn(rows, width, device=model.device, dtype=model.dtype) for width in widths}
    flop = sum(2 * rows * module.weight.numel() for layer in layers for module in layer)

    def once():
        for layer in layers:
            for module in layer:
                nn.functional.linear(inputs[module.in_features], module.weight)

    once()
    return flop / min(seconds(once, model.device, clock)[0] for _ in range(repeats))


@contextmanager
def counting(model):
    """Count the flop of all linear modules, the unembedding included, while the block runs."""
    total = [0]

    def count(module, args, _):
        total[0] += 2 * args[0].numel() // module.in_features * module.weight.numel()

    modules = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(count) for module in modules]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def reset_peak(device):
    """Start measuring the peak anew; returns False where the system can't."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device):
    """Return the peak since :func:`reset_peak`: a CUDA device's memory, else the process's resident one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def weight_bytes(model):
    """Return the size of the weights; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())


def about(options):
    """Return on what, and how, a benchmark was run, from its command line."""
    return {
        "machine": name_of(torch.device(options.device)),
        "device": options.device,
        "threads": options.threads,
        "dtype": getattr(options, "dtype", "float32"),
        "clock": options.clock,
        "torch": torch.__version__,
    }


def name_of(device):
    """Return what the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
