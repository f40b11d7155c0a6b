import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from thermal_bags import IMAGE, cut, messages, pixels, record

from difiisr_models import FrameSettings, Runtime

os.environ["RAY_raylet_start_wait_time_s"] = "240"  # noqa: SIM112, read at the import
pytest.importorskip("ray", reason="needs the extra fleet")
pytest.importorskip("pyarrow", reason="needs the extra fleet")
pytest.importorskip("jinja2", reason="needs the extra fleet")
pytest.importorskip("matplotlib", reason="needs the extra fleet")

import ray
from ray.cluster_utils import Cluster as RayCluster

from difiisr_ros.cli import main
from difiisr_ros.commands.fleet import Replay
from difiisr_ros.commands.fleet_report import fleet_page
from difiisr_ros.commands.fleet_work import Cluster, do_all, write_result
from difiisr_ros.fleet_jobs import FleetFolder, find_jobs

BICUBIC = Replay("bicubic", runtime=Runtime(device="cpu", threads=1))
SLICES = ({"first": 5}, {"frames": 5})
SEED = int(os.environ.get("FLEET_SEED", "23"))


def small_bag(path: Path, seed: int, storage: str = "mcap") -> Path:
    return record(path, storage, images=[pixels(100 * seed + n, 24, 32) for n in range(3)])


def content(folder: Path) -> dict[str, bytes]:
    """All files in a folder and below."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def do_here(inputs: list[str], out: str, task: Replay = BICUBIC) -> dict[str, dict]:
    """Rows of the jobs, done in this process."""
    folder, make, product = FleetFolder(out), task.load(), task.product()
    rows = {}
    for job in find_jobs(inputs, out):
        name = job.name(product)
        rows[name] = folder.do(job, name, make)
    return rows


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "in"
    small_bag(folder / "deep" / "a", 1)
    small_bag(folder / "b", 2, "sqlite3")
    small_bag(folder / "torn", 3)
    cut(folder / "torn", 0.5)
    (folder / "empty.mcap").touch()
    (folder / "notes.md").write_text("no recording")
    return folder


def test_inputs_are_recordings_folders_patterns_and_lists(recordings, tmp_path, monkeypatch):
    def found(*inputs):
        return sorted(Path(job.path).name for job in find_jobs(map(str, inputs), "out"))

    everything = ["a", "b", "empty.mcap", "torn.mcap"]
    assert found(recordings) == everything
    assert found(recordings / "*") == everything
    assert found(recordings / "**" / "a") == ["a"]
    assert found(recordings / "b" / "b.db3", recordings / "b" / "b.db3") == ["b.db3"]
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("in/b  # the second\n\nin/gone\n")
    assert found("list.txt", "in/deep") == ["a", "b", "gone"]
    with pytest.raises(FileNotFoundError, match="gone"):
        found("in/gone")
    assert find_jobs(["in"], "in/deep") == [
        j for j in find_jobs(["in"], "o") if "deep" not in j.path
    ]


def test_a_jobs_name_tells_all_that_its_result_depends_on(recordings, monkeypatch):
    (job,) = find_jobs([str(recordings / "b")], "out")
    usual = job.name(BICUBIC.product())
    changes = {"image_topic": "/other", "model": "difiisr-rt-x4", "settings": FrameSettings(seed=1)}
    changes["runtime"] = Runtime(device="cpu", threads=2)
    names = [job.name(replace(BICUBIC, **{k: v}).product()) for k, v in changes.items()]
    names += [replace(job, **slice_).name(BICUBIC.product()) for slice_ in SLICES]
    os.utime(recordings / "b" / "b.db3", ns=(1, 1))
    names += [job.name(BICUBIC.product()) for job in find_jobs([str(recordings / "b")], "out")]
    assert usual == job.name(BICUBIC.product())
    monkeypatch.setattr("difiisr_ros.fleet_jobs.version", lambda package: "another")
    names += [usual, job.name(BICUBIC.product())]
    assert len(set(names)) == len(names)
    assert usual.startswith("b-")


def test_a_damaged_recording_is_a_row_and_is_done(recordings, tmp_path):
    rows = do_here([str(recordings)], str(tmp_path / "out"))
    by_input = {Path(row["input"]).name: row for row in rows.values()}
    assert by_input["a"]["frames_out"] == by_input["b"]["frames_out"] == 3
    assert "cut off" in by_input["torn.mcap"]["fault"]
    assert "no MCAP file" in by_input["empty.mcap"]["fault"]
    assert FleetFolder(str(tmp_path / "out")).done().keys() == rows.keys()
    folder = tmp_path / "out" / by_input["a"]["folder"]
    assert len(messages(folder, IMAGE, "/cam/sr")) == 6
    assert {p.name for p in folder.iterdir()} > {"picture.png", "report.html", "metadata.yaml"}


def test_what_the_machine_fails_at_is_tried_again(recordings, tmp_path, monkeypatch):
    out, (job,) = FleetFolder(str(tmp_path / "out")), find_jobs([str(recordings / "b")], "out")
    name, make = job.name(BICUBIC.product()), BICUBIC.load()
    attempts = []

    def full(descriptor):
        attempts.append(descriptor)
        if len(attempts) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    row = out.do(job, name, make)
    assert row["failed"]
    assert "No space left" in row["fault"]
    assert out.done() == {}
    assert content(tmp_path / "out") == {}
    assert not out.do(job, name, make)["failed"]
    assert out.done().keys() == {name}


def test_what_a_killed_attempt_left_is_cleared_or_kept_if_whole(recordings, tmp_path):
    place, source = tmp_path / "out", [str(recordings / "b")]
    (name,) = do_here(source, str(place))
    whole = content(place / "bags" / name)
    (place / "rows" / f"{name}.parquet").unlink()  # killed between folder and row
    left = place / ".partial" / f"{name}.x"
    left.mkdir()
    (left / "half").write_text("half")
    assert FleetFolder(str(place)).done() == {}
    do_here(source, str(place))
    assert FleetFolder(str(place)).done().keys() == {name}
    assert content(place / "bags" / name) == whole
    assert not left.exists()


def test_results_of_several_runs_make_one_report(recordings, tmp_path, json_of):
    for part in ("deep", "b"):
        folder = FleetFolder(str(tmp_path / part))
        rows = list(do_here([str(recordings / part)], str(tmp_path / part)).values())
        rows[0]["metrics"] = {"psnr of x": 30.0 + len(part)}
        write_result(folder, rows)
    parts = [tmp_path / "deep", tmp_path / "b"]
    facts = json_of("fleet", "report", *parts, "--out", tmp_path / "all" / "of")
    table = FleetFolder(str(tmp_path / "all" / "of")).result()
    assert [row["frames_out"] for row in facts["jobs"]] == [row["frames_out"] for row in table]
    assert [Path(row["input"]).name for row in table] == ["b", "a"]
    page = (tmp_path / "all" / "of" / "report.html").read_text()
    for row in table:
        assert (tmp_path / "all" / "of" / row["folder"] / "picture.png").is_file()
        assert f'href="{row["folder"]}/report.html"' in page
    (alone,) = FleetFolder(str(tmp_path / "b")).result()
    picture = f'src="{alone["folder"]}/picture.png"'
    assert picture in (tmp_path / "b" / "report.html").read_text()
    assert page.index("<b>31</b>") < page.index("<b>34</b>")  # the lower PSNR is the worse


def test_a_report_tells_what_was_not_usable():
    bad = {"job": "x", "input": "/in/<x>", "fault": "no space", "failed": True}
    good = {"job": "y", "input": "/in/y", "folder": "y"}
    page = fleet_page([bad, good | {"frames_in": 4, "frames_out": 3, "refused": 1}])
    for text in ("failed: no space", "/in/&lt;x&gt;", "3 of 4 frames"):
        assert text in page
    assert "nan" not in page
    assert "no space" in fleet_page([bad])


@pytest.fixture
def bucket(monkeypatch):
    """The URI of an S3 bucket, and what opens it, on a server in this process."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    from pyarrow.fs import S3FileSystem

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    address = "{}:{}".format(*running.get_host_and_port()).replace("0.0.0.0", "127.0.0.1")
    system = S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True)
    system.create_dir("fleet")
    yield system, f"endpoint_override={address}&scheme=http"
    running.stop()


def test_object_stores_hold_inputs_and_results(bucket, recordings, tmp_path):
    from pyarrow.fs import FileSelector, LocalFileSystem, copy_files

    system, query = bucket
    copy_files(str(recordings), "fleet/in", LocalFileSystem(), system)
    here = do_here([str(recordings)], str(tmp_path / "out"))
    there = do_here([f"s3://fleet/in?{query}"], f"s3://fleet/out?{query}")
    outcome = [
        sorted((Path(row["input"]).name, row.get("frames_out"), row["failed"]) for row in rows)
        for rows in (here.values(), there.values())
    ]
    assert outcome[0] == outcome[1]
    faults = {row["input"]: row["fault"] for row in there.values()}
    assert "nothing in fleet/in/empty.mcap is readable" in faults["fleet/in/empty.mcap"]
    out = FleetFolder(f"s3://fleet/out?{query}")
    assert out.done().keys() == there.keys()
    (pattern,) = find_jobs([f"s3://fleet/in/**/a?{query}"], "out")
    (plain,) = find_jobs([f"s3://fleet/*/d*p?{query}"], "out")
    assert pattern.path == plain.path == "fleet/in/deep/a"
    listed = system.get_file_info(FileSelector("fleet/out", recursive=True))
    stored = sorted(Path(info.path).suffix for info in listed if info.is_file)
    assert len(stored) == len(content(tmp_path / "out"))
    row = next(row for row in there.values() if row["input"].endswith("/a"))
    one = system.open_input_stream(f"fleet/out/{row['folder']}/{row['job']}.mcap").read()
    path = tmp_path / "from_there.mcap"
    path.write_bytes(one)
    same = next(row for row in here.values() if row["input"].endswith("/a"))
    assert messages(path) == messages(tmp_path / "out" / same["folder"])


DISK_FULL_ONCE = """
import os
flush, flag = os.fsync, {flag!r}
def fsync(descriptor):
    if ".partial" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        try:
            os.unlink(flag)
        except FileNotFoundError:
            pass
        else:
            raise OSError(28, "No space left on device")
    flush(descriptor)
os.fsync = fsync
"""


@pytest.fixture(scope="module")
def cluster():
    """Address of a Ray cluster of two CPUs and a GPU, and a file: the disk is full once it exists.

    The GPU is Ray's belief alone.
    """
    folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
    with folder as session, pytest.MonkeyPatch.context() as patch:
        full = Path(session, "full")
        Path(session, "sitecustomize.py").write_text(DISK_FULL_ONCE.format(flag=str(full)))
        patch.setenv("PYTHONPATH", session)
        patch.setenv("RAY_worker_niceness", "0")
        head = {"num_cpus": 2, "num_gpus": 1, "temp_dir": session}
        head |= {"object_store_memory": 80_000_000, "include_log_monitor": False}
        head |= {"no_monitor": True, "include_dashboard": False}
        started = RayCluster(initialize_head=True, head_node_args=head)
        yield started.address, full
        ray.shutdown()
        started.shutdown()


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


@pytest.mark.timeout(900)  # a minute, where the machine has nothing else to do
def test_killed_workers_a_killed_driver_and_a_full_disk_change_no_byte(
    cluster, tmp_path, capfd, json_of
):
    chance = random.Random(SEED)
    for n in range(40):
        small_bag(tmp_path / "in" / f"bag{n:02}", n, ("mcap", "sqlite3")[n % 2])
    wanted = do_here([str(tmp_path / "in")], str(tmp_path / "undisturbed"))
    (address, full), out = cluster, tmp_path / "out"
    command = ["fleet", "replay", str(tmp_path / "in"), "--out", str(out), "--address", address]
    command += ["--model=bicubic", "--device=cpu", "--workers=3"]  # one more than fits

    def done():
        return len(list((out / "rows").iterdir())) if (out / "rows").exists() else 0

    def workers():
        children = psutil.Process().children(recursive=True)
        return [process for process in children if process.name().startswith("ray::Worker")]

    def kill_a_worker():
        if found := workers():
            chance.choice(found).kill()
        return bool(found)

    def drive(kill_at=0, until=None):
        """Exit code and output of a run; a worker is killed at this number of results."""
        with (tmp_path / "driver.log").open("w+") as log:
            own = [sys.executable, "-m", "difiisr_ros.cli", *command]
            driver = subprocess.Popen(own, stdout=log, stderr=log)
            try:
                if kill_at:
                    wait_for(lambda: done() >= kill_at or driver.poll() is not None)
                    wait_for(lambda: kill_a_worker() or driver.poll() is not None)
                wait_for(lambda: driver.poll() is not None or (until and done() >= until))
            finally:
                driver.kill()
            return driver.wait(), log.seek(0) or log.read()

    code, text = drive(chance.randrange(2, 8), until=chance.randrange(9, 16))
    assert code == -signal.SIGKILL, text
    wait_for(lambda: not workers())  # of the killed driver: the full disk is not theirs
    full.touch()
    code, text = drive()
    assert code == 2, text
    assert "No space left on device" in text
    assert 16 < done() < 40
    assert main(command) == 0
    text = capfd.readouterr().err
    assert f"40 jobs, {40 - text.count(' of 3 frames')} of them done already" in text

    jobs = json_of(*command)["jobs"]
    assert {job["job"] for job in jobs} == wanted.keys()

    assert content(out / "bags") == content(tmp_path / "undisturbed" / "bags")
    rows = FleetFolder(str(out)).done()
    timed = ("seconds", "memory_mb", "host", "metrics")
    assert {n: {k: v for k, v in r.items() if k not in timed} for n, r in rows.items()} == {
        n: {k: r.get(k) for k in rows[n] if k not in timed} for n, r in wanted.items()
    }
    assert {p.name for p in out.iterdir()} == {"bags", "rows", "fleet.parquet", "report.html"}
    assert {p.stem for p in (out / "rows").iterdir()} == wanted.keys()


class SeenByWorkers(Replay):
    """Only notes what Ray gave the worker."""

    def load(self):
        def make(job, source, folder):
            folder.mkdir()
            given = ray.get_runtime_context().get_assigned_resources()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            return {"frames_in": 1, "frames_out": 1, "notes": [str(given.get("GPU")), str(visible)]}

        return make


def test_a_worker_sees_the_gpu_that_it_has_a_share_of(cluster, recordings, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    jobs, out = find_jobs([str(recordings / "b")], "out"), str(tmp_path / "out")
    task = SeenByWorkers("bicubic", runtime=Runtime(threads=1))
    assert do_all(jobs, out, task, Cluster(cluster[0], num_gpus=0.25)).code == 0
    (row,) = FleetFolder(out).result()
    assert row["notes"] == ["0.25", "0"]


def test_the_cluster_file_is_one_that_ray_takes():
    from ray.autoscaler._private.util import prepare_config, validate_config

    path = Path(__file__).parents[2] / "config" / "fleet_cluster.yaml"
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


def test_an_evaluation_has_its_metrics_in_the_row(recordings, tmp_path):
    pytest.importorskip("jinja2", reason="needs the extra eval")
    from difiisr_ros.commands.evaluate_models import Judgement
    from difiisr_ros.commands.fleet_evaluate import Evaluate, fleet_evaluate

    with pytest.raises(ValueError, match="a recording has a past"):
        fleet_evaluate([str(recordings)], out=str(tmp_path / "x"), task=Evaluate(Judgement(pan=3)))

    task = Evaluate(Judgement("bicubic", limit=2, metrics="psnr", device="cpu"))
    inputs = [str(recordings / name) for name in ("b", "empty.mcap", "torn")]
    rows = do_here(inputs, str(tmp_path / "out"), task).values()
    good, bad, torn = sorted(rows, key=lambda row: row["input"])
    assert good["fault"] == ""
    assert good["metrics"]["psnr of bicubic"] > 10
    made = {path.name for path in (tmp_path / "out" / good["folder"]).iterdir()}
    assert {"report.html", "picture.png"} <= made
    assert "no MCAP file" in bad["fault"]
    assert "cut off" in torn["fault"]
    assert torn["frames_out"] > 0
    assert not bad["failed"]
