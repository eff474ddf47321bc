"""What `recsys doctor` says of the hardware, and of what training would choose on it."""

from collections.abc import Iterator

import torch

from cluster.doctor_findings import Finding, gib
from cluster.held import ahead_room, fair_share
from recsys.config import ClusterConfig, Config, TrainConfig
from recsys.training import hardware
from recsys.training.machine import Machine, tf32_is_on


def hardware_findings(machine: Machine, *, workers: int, store: int, driver_gpus: int) -> Iterator[Finding]:
    """workers: how many train; store: bytes of the object store of a Ray started here, 0 where none would be.

    driver_gpus: GPUs that the driver knows; torch may see fewer.
    """
    yield Finding.of("device", f"{machine.device}: {machine.name}", note=_unused(len(machine.gpus), driver_gpus))
    for number, gpu in enumerate(machine.gpus):
        major, minor = gpu.capability
        yield Finding.of(f"GPU {number}", f"{gpu.name}, {gib(gpu.memory)}, compute capability {major}.{minor}")
    if machine.gpus:
        yield Finding.of("cuDNN", str(machine.cudnn or "none"))
        yield Finding.of("CPU", machine.processor.name)
    yield cores(machine, workers)
    yield free_memory(machine, store)
    yield Finding.of("bf16 instructions", ", ".join(machine.processor.bf16) or "none")
    rates = f"fp32 {machine.fp32_gflops:,.0f}, bf16 {machine.bf16_gflops:,.0f} GFLOP/s"
    yield Finding.of("products", f"{rates} (one thread of the CPU)")


def _unused(usable: int, known: int) -> str:
    if usable >= known:
        return ""
    return f"The driver knows {known} GPUs and torch can use {usable}: install a torch built for CUDA and for this driver."


def cores(machine: Machine, workers: int) -> Finding:
    """Cores, and whether more workers could use them."""
    cpu = machine.processor
    usable, few = f"{cpu.usable_cores:g}", "core" if cpu.usable_cores == 1 else "cores"
    note = ""
    if workers > cpu.usable_cores:
        note = f"{workers} workers share {usable} {few}: lower cluster.num_workers."
    elif cpu.usable_cores <= 2:
        note = f"Only {usable} {few}: cluster.num_workers above 1 will not be faster."
    return Finding.of("cores", f"{usable} usable of {cpu.logical_cores} logical, {cpu.physical_cores} physical", note=note)


def free_memory(machine: Machine, store: int) -> Finding:
    """Memory, and whether the object store of a Ray started here finds room in it."""
    memory = machine.memory
    value = f"{gib(memory.free)} free of {gib(memory.total)}"
    bad = note = ""
    if memory.total < store:
        bad = f"Ray will not start with an object store of {gib(store)}: lower cluster.object_store_bytes."
    elif memory.free < store:
        note = f"The object store may grow to {gib(store)}: end other programs, or lower cluster.object_store_bytes."
    return Finding.of("memory", value, bad=bad, note=note)


def choices(machine: Machine, config: Config) -> Iterator[Finding]:
    """What each of cluster.num_workers workers on this machine would compute with, and why."""
    cluster, train = config.cluster, config.train
    device, finding = worker_device(len(machine.gpus), cluster)
    chosen = hardware.choose(train, device=device, workers_on_host=cluster.most_workers)
    yield finding
    yield Finding.of("precision", f"{chosen.precision}: {_why(machine, train, device)}", note=_slow(machine, train, device))
    yield threads(chosen.threads, machine.processor.usable_cores, cluster.most_workers)
    yield reading(machine, cluster, chosen.threads)
    yield Finding.of("micro-batch", micro_batch(train))
    yield Finding.of("pinned memory", "on" if chosen.pin_memory else "off: only copies to a GPU gain by it")
    tf32 = device.type == "cuda" and tf32_is_on()
    yield Finding.of("TF32", "on" if tf32 else "off: GPUs have it from compute capability 8 on")


def worker_device(gpus: int, cluster: ClusterConfig) -> tuple[torch.device, Finding]:
    """The device of a worker, by the rule of `session.takes_gpu`."""
    enough = 0 < cluster.most_workers <= gpus
    takes = enough and cluster.use_gpu != "no"
    bad = note = ""
    if cluster.use_gpu == "yes" and not enough:
        asked = f"cluster.use_gpu = yes asks for {cluster.most_workers}"
        bad = f"{asked}, and torch can use {gpus}: lower cluster.most_workers, or set cluster.use_gpu=auto."
    elif gpus and not takes:
        why = "cluster.use_gpu = no" if enough else f"there is not one for each of {cluster.most_workers} workers"
        note = f"The GPU stays idle: {why}. Set cluster.num_workers to at most {gpus}, and cluster.use_gpu to auto."
    device = torch.device("cuda" if takes else "cpu")
    return device, Finding.of("a worker's device", device.type, bad=bad, note=note)


def threads(each: int, cores: float, workers: int) -> Finding:
    """Threads of a worker, against the cores that all of them share."""
    note = ""
    if each > 1 and each * workers > cores:
        note = f"Together {each * workers} threads for {cores:g} cores: set train.threads={max(1, int(cores) // workers)}."
    return Finding.of("threads a worker", str(each), note=note)


def reading(machine: Machine, cluster: ClusterConfig, threads: int) -> Finding:
    """How a worker's data is read."""
    readers = cluster.readers_on(threads)
    ahead = cluster.prefetch_on(readers, ahead_room(machine.memory.free, None, cluster.most_workers))
    shards = fair_share(machine.memory.free, cluster.most_workers) if cluster.hold_bytes is None else cluster.hold_bytes
    return Finding.of("reading", f"{readers} readers, {ahead} macro-batches ahead; shards up to {gib(shards)} held in memory")


def micro_batch(train: TrainConfig) -> str:
    """Where the micro-batch will come from: only a model and its data can be tried."""
    if train.micro_batch is not None:
        return f"{train.micro_batch:,} events, as train.micro_batch says"
    return "found by trying before the first step, up to a worker's part of one, and remembered; train.micro_batch sets it"


def _why(machine: Machine, train: TrainConfig, device: torch.device) -> str:
    if train.precision != "auto":
        return "as train.precision says"
    if device.type == "cuda":
        return "the best that this GPU has instructions for"
    return f"bf16 measures {_gain(machine):.2f} times as fast as fp32, {hardware.CLEARLY} is asked for"


def _slow(machine: Machine, train: TrainConfig, device: torch.device) -> str:
    if train.precision == "bf16" and device.type == "cpu" and _gain(machine) < 1:
        return f"On this CPU bf16 is {1 / _gain(machine):.1f} times slower than fp32: set train.precision=auto."
    return ""


def _gain(machine: Machine) -> float:
    return machine.bf16_gflops / machine.fp32_gflops
