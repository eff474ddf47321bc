"""What `recsys doctor` makes of planted machines, environments and ports, and one run of the real command."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from cluster import doctor
from cluster import doctor_machine as of_machine
from cluster import doctor_surroundings as around
from cluster.doctor_findings import Finding
from recsys.config import Config, load_config
from recsys.training.machine import Gpu, Machine, Memory, Processor
from tests.commands import lines_of_json, run_recsys

GIB = 1 << 30
SECRET = "not-to-be-shown-4711"
H = Gpu("Planted GPU", 80 * GIB, (9, 0))


@pytest.fixture(autouse=True)
def threads_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def machine(*, usable: float = 8, gpus: tuple[Gpu, ...] = (), total: int = 32 * GIB, free: int = 16 * GIB, bf16: float = 200):
    cpu = Processor("Planted CPU", physical_cores=8, logical_cores=16, usable_cores=usable, bf16=("amx_bf16",))
    return Machine(cpu, Memory(total, free), gpus, fp32_gflops=100, bf16_gflops=bf16, tf32=False, cudnn=91002)


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# The machine, and what would be chosen on it.


def test_a_machine_is_told_in_numbers_people_read():
    told = by_name(of_machine.hardware_findings(machine(gpus=(H, H)), workers=2, store=GIB, driver_gpus=2))
    assert {one.status for one in told.values()} == {"ok"}
    assert told["device"].value == "cuda: Planted GPU"
    assert told["GPU 1"].value == "Planted GPU, 80.0 GiB, compute capability 9.0"
    assert told["cuDNN"].value == "91002" and told["CPU"].value == "Planted CPU"
    assert told["cores"].value == "8 usable of 16 logical, 8 physical"
    assert told["memory"].value == "16.0 GiB free of 32.0 GiB"
    assert told["products"].value == "fp32 100, bf16 200 GFLOP/s (one thread of the CPU)"


def test_a_gpu_that_torch_cannot_use_is_not_passed_over():
    told = by_name(of_machine.hardware_findings(machine(), workers=1, store=GIB, driver_gpus=1))["device"]
    assert told.status == "note" and "knows 1 GPUs and torch can use 0" in told.advice


@pytest.mark.parametrize(
    ("usable", "workers", "advice"),
    [
        (8, 4, ""),
        (2, 1, "Only 2 cores: cluster.num_workers above 1 will not be faster."),
        (1, 1, "Only 1 core: cluster.num_workers above 1 will not be faster."),
        (1.5, 4, "4 workers share 1.5 cores: lower cluster.num_workers."),
    ],
)
def test_more_workers_than_cores_are_of_no_use(usable, workers, advice):
    told = of_machine.cores(machine(usable=usable), workers)
    assert (told.status, told.advice) == ("note" if advice else "ok", advice)


@pytest.mark.parametrize(
    ("total", "free", "status"), [(4 * GIB, 2 * GIB, "ok"), (4 * GIB, GIB // 2, "note"), (GIB // 2, GIB // 4, "bad")]
)
def test_the_object_store_needs_memory(total, free, status):
    assert of_machine.free_memory(machine(total=total, free=free), GIB).status == status
    assert of_machine.free_memory(machine(total=total, free=free), 0).status == "ok"  # that of a Ray joined lies elsewhere


@pytest.mark.parametrize(
    ("gpus", "settings", "device", "status"),
    [
        (0, [], "cpu", "ok"),
        (2, ["cluster.num_workers=2"], "cuda", "ok"),
        (1, ["cluster.num_workers=2"], "cpu", "note"),
        (1, ["cluster.use_gpu=no"], "cpu", "note"),
        (1, ["cluster.num_workers=2", "cluster.use_gpu=yes"], "cpu", "bad"),
        (0, ["cluster.use_gpu=yes"], "cpu", "bad"),
    ],
)
def test_the_device_of_a_worker(gpus, settings, device, status):
    chosen, told = of_machine.worker_device(gpus, load_config(overrides=settings).cluster)
    assert (chosen.type, told.value, told.status) == (device, device, status)
    assert bool(told.advice) == (status != "ok")


def test_what_is_asked_for_is_shown_as_chosen_and_a_slow_wish_is_noted():
    config = load_config(overrides=["train.precision=bf16", "train.threads=4", "cluster.num_workers=4"])
    told = by_name(of_machine.choices(machine(usable=8, bf16=50), config))
    assert told["precision"].value == "bf16: as train.precision says"
    assert told["precision"].advice == "On this CPU bf16 is 2.0 times slower than fp32: set train.precision=auto."
    assert told["threads a worker"].value == "4"
    assert told["threads a worker"].advice == "Together 16 threads for 8 cores: set train.threads=2."
    assert told["pinned memory"].value.startswith("off") and told["TF32"].value.startswith("off")


def test_how_data_will_be_read_and_steps_made_is_said():
    told = by_name(
        of_machine.choices(machine(usable=8), load_config(overrides=["train.threads=8", "cluster.hold_bytes=1073741824"]))
    )
    assert told["reading"].value.startswith("8 readers, ") and told["reading"].value.endswith("up to 1.0 GiB held in memory")
    assert "found by trying" in told["micro-batch"].value
    told = by_name(of_machine.choices(machine(), load_config(overrides=["train.micro_batch=512", "cluster.prefetch=5"])))
    assert told["micro-batch"].value.startswith("512 events") and "5 macro-batches ahead" in told["reading"].value


def test_why_auto_chose_is_said():
    told = by_name(of_machine.choices(machine(), Config()))["precision"]
    chosen = told.value.partition(":")[0]
    assert told.value == f"{chosen}: bf16 measures 2.00 times as fast as fp32, 1.15 is asked for" and chosen in ("fp32", "bf16")


# What lies round it.

ASKED = ["python>=3.11", "ray[data,serve]<2.61,>=2.58", "torch>=2.6", 'pytest>=99; extra == "dev"']


@pytest.mark.parametrize(
    ("name", "version", "advice"),
    [
        ("ray", "2.60.0", ""),
        ("torch", "2.13.0+cpu", ""),
        ("torch", "2.7.0rc1", ""),
        ("pytest", "8.3", ""),  # of an extra
        ("other", "1", ""),
        ("ray", "2.61.0", 'Needed is ray[data,serve]<2.61,>=2.58: pip install "ray[data,serve]<2.61,>=2.58".'),
        ("torch", None, 'Needed is torch>=2.6: pip install "torch>=2.6".'),
        ("python", "3.10.1", "Needed is python>=3.11: make the environment with such a Python."),
    ],
)
def test_a_version_out_of_its_range_is_bad(name, version, advice):
    (told,) = around.versions(ASKED, {name: version})
    assert (told.status, told.advice) == ("bad" if advice else "ok", advice)
    assert told.value == (version or "not installed")


def test_this_environment_has_what_the_package_asks_for():
    told = by_name(around.packages())
    assert list(told) == ["python", *around.SHOWN]
    assert {one.status for one in told.values()} == {"ok"}


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_noted_and_a_free_one_is_not(taken):
    told = around.port("port", taken, "Choose another.")
    assert (told.status, told.advice) == ("note", "Choose another.") and "in use" in told.value
    assert around.port("port", taken, "").status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert around.port("port", free, "Choose another.") == Finding("port", "ok", f"{free}: free")


def test_haproxys_ports_are_looked_at_where_it_is_found(taken):
    env = {"RAY_SERVE_HAPROXY_BINARY_PATH": "/planted/haproxy", "RAY_SERVE_HAPROXY_STATS_PORT": str(taken)}
    told = by_name(around.ports(env))["port of HAProxy's status"]
    assert told.status == "note" and told.value.startswith(f"{taken}: ")


@pytest.mark.parametrize(
    ("address", "status", "value"),
    [
        (None, "ok", "not set"),
        ("local", "ok", "local"),
        ("auto", "note", "not tried"),
        ("http://10.0.0.5:8265", "bad", "http://10.0.0.5:8265"),
        ("127.0.0.1:1", "bad", "refused"),
        ("127.0.0.1:99999", "bad", "127.0.0.1:99999"),
        ("127.0.0.1:{taken}", "ok", "accepts connections"),
        ("ray://127.0.0.1:{taken}", "ok", "accepts connections"),
    ],
)
def test_the_address_of_ray_is_tried(taken, address, status, value):
    told = around.ray_address({"RAY_ADDRESS": address.format(taken=taken)} if address else {})
    assert told.status == status and value in told.value
    assert bool(told.advice) == (status != "ok")


@pytest.mark.parametrize(
    ("env", "status", "value"),
    [
        ({}, "ok", "none yet"),
        ({"RAY_AUTH_TOKEN": SECRET}, "ok", "in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": "{home}/kept"}, "ok", "in {home}/kept"),
        ({"RAY_AUTH_TOKEN_PATH": "{home}/none"}, "bad", "none in {home}/none"),
        ({"RAY_AUTH_MODE": "disabled"}, "note", "not asked for"),
        ({"RAY_AUTH_MODE": SECRET}, "note", "RAY_AUTH_MODE is unknown"),
        ({"RAY_ADDRESS": "10.0.0.5:6379"}, "note", "none"),
        ({"RAY_ADDRESS": "10.0.0.5:6379", "RAY_AUTH_MODE": "token"}, "bad", "none"),
    ],
)
def test_where_rays_token_lies_is_told_and_never_what_it_is(tmp_path, env, status, value):
    (tmp_path / "kept").write_text(SECRET)
    told = around.token({name: text.format(home=tmp_path) for name, text in env.items()}, home=tmp_path)
    assert told.status == status and told.value.startswith(value.format(home=tmp_path))
    assert SECRET not in repr(told)


def test_a_token_under_the_home_folder_is_found(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(SECRET)
    told = around.token({"RAY_ADDRESS": "10.0.0.5:6379"}, home=tmp_path)
    assert (told.status, told.value) == ("ok", f"in {tmp_path}/.ray/auth_token")


@pytest.mark.parametrize(
    ("free", "store", "status"), [(2 * GIB, GIB, "ok"), (GIB, GIB, "ok"), (GIB // 16, GIB, "note"), (GIB, 16 * GIB, "bad")]
)
def test_shared_memory_must_hold_the_object_store(free, store, status):
    told = around.room_for_objects("/dev/shm", free, store)
    assert told.status == status
    assert ("--shm-size=" in told.advice) == (status != "ok")


def test_shared_memory_of_another_rays_host_is_not_judged(tmp_path):
    assert around.shared_memory(0, tmp_path).status == "ok"
    assert around.shared_memory(1 << 60, tmp_path).status == "bad"
    assert around.shared_memory(1 << 60, tmp_path / "none").status == "ok"


@pytest.mark.parametrize(("free", "status"), [(9 * GIB, "ok"), (GIB, "note"), (1 << 20, "bad")])
def test_a_full_disk_is_told(tmp_path, free, status):
    told = around.room_on_disk("runs", tmp_path, free, "choose another cluster.storage")
    assert (told.status, "cluster.storage" in told.advice) == (status, status != "ok")


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    assert around.disk("runs", tmp_path / "a" / "b", "choose another").value.endswith("GiB free")
    (tmp_path / "file").write_text("")
    told = around.disk("runs", tmp_path / "file" / "runs", "choose another")
    assert (told.status, told.advice) == ("bad", f"Mend {tmp_path / 'file'}, or choose another.")


def test_rays_temp_folder_must_have_a_short_name_and_room_to_spill(tmp_path):
    long = tmp_path / ("long" * 20)
    assert "RAY_TMPDIR" in around.ray_temp({"RAY_TMPDIR": str(long)}).advice
    assert around.ray_temp({"RAY_TMPDIR": str(long), "RAY_ADDRESS": "10.0.0.5:6379"}).status != "bad"  # no sockets made here
    assert around.ray_temp({"RAY_TMPDIR": "/tmp", "TMPDIR": str(long)}).value.startswith("/tmp: ")
    finding = Finding("Ray's temp folder", "ok", "/tmp: much")
    assert around.room_to_spill(finding, free=0.06) is finding
    assert around.room_to_spill(finding, free=0.04).status == "note"


@pytest.mark.parametrize(
    ("soft", "hard", "status", "value"),
    [(1024, 1024, "note", "1,024"), (1024, 1 << 20, "ok", "65,536"), (1024, -1, "ok", "65,536"), (-1, -1, "ok", "no limit")],
)
def test_the_limit_of_open_files_is_the_one_ray_ends_up_with(soft, hard, status, value):
    told = around.open_files(soft, hard)
    assert (told.status, told.value) == (status, value)


def test_the_folder_of_ratings(tmp_path):
    env = {"RECSYS_DATA": str(tmp_path)}
    assert around.data_folder(env) == Finding("$RECSYS_DATA", "ok", str(tmp_path))
    assert around.data_folder({}).status == "note"
    assert "no such folder" in around.data_folder({"RECSYS_DATA": str(tmp_path / "gone")}).advice


# All of it together.


def test_a_check_that_raises_is_a_bad_row_and_the_others_stand(capsys):
    def broken():
        yield Finding("before", "ok", "seen")
        raise ValueError("planted\n[red]fault")

    report = doctor.run({"one": {"broken": broken}, "two": {"sound": lambda: [Finding("sound", "note", "well", "Better.")]}})
    assert [(one.name, one.status) for one in report.findings] == [("before", "ok"), ("broken", "bad"), ("sound", "note")]
    assert report.status == "bad" and report.groups["one"][1].value == "ValueError: planted [red]fault"
    doctor.show(report)
    told = capsys.readouterr().out
    assert "[red]fault" in told and "note sound: Better." in told and "1 ok, 1 to note, 1 bad." in told


@pytest.mark.parametrize("statuses", [["ok"], ["ok", "note"], ["bad", "ok", "note"]])
def test_a_report_is_as_grave_as_its_gravest(statuses):
    report = doctor.run({"group": {status: lambda status=status: [Finding(status, status, "")] for status in statuses}})
    assert report.status == sorted(statuses, key=doctor.GRAVITY.index)[-1]


def test_the_real_command_ends_with_5_where_something_will_fail():
    (told,) = lines_of_json(
        run_recsys("doctor", "--json", rc=5, env={"RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_TOKEN": SECRET}).stdout
    )
    assert told["status"] == "bad" and SECRET not in json.dumps(told)
    checks = {check["name"]: check for check in told["checks"]}
    assert checks["RAY_ADDRESS"]["status"] == "bad" and checks["Ray's token"]["value"] == "in RAY_AUTH_TOKEN"
    assert {check["group"] for check in told["checks"]} == {"hardware", "choices", "versions", "Ray", "folders"}
    assert {"cores", "memory", "precision", "threads a worker", "torch", "/dev/shm", "open files", "runs"} <= set(checks)
    assert all(check["advice"] for check in told["checks"] if check["status"] != "ok")
    assert not [check for check in told["checks"] if "could not be looked at" in check["advice"]]


LAZY = """
import os, sys
from cluster import doctor
from recsys.config import Config
print(sorted({"ray", "torch"} & set(sys.modules)))
report = doctor.examine(Config(), {})
print(sorted({"ray"} & set(sys.modules)), len(list(report.findings)) > 20)
"""


def test_it_loads_torch_only_when_it_looks_and_ray_never():
    run = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, env=dict(os.environ), check=False)
    assert (run.stdout, run.stderr) == ("[]\n[] True\n", "")
