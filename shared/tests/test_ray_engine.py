"""Sweeps on Ray: as on processes of one machine, and what survives a killed worker and a lost machine."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_jobs
from toy_jobs import wait_for

from studycore import ray_engine
from studycore.errors import UserError
from studycore.execution import job_runner, processes_and_threads
from studycore.jobs import Ended, Schedule, run_in_processes
from studycore.ray_engine import run_on_ray, slots
from studycore.stopping import StopFlag

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine: a head without cores and two nodes of one core."""
    pytest.importorskip("ray", reason="Ray is not installed (studycore[ray])", exc_type=ModuleNotFoundError)
    ray_engine.load()
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{HERE}:{os.environ.get('PYTHONPATH', '')}")  # the workers import toy_jobs
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.nodes = [made.add_node(wait=False, num_cpus=1) for _ in range(2)]
        made.wait_for_nodes()
        yield made
        made.shutdown()


def on_ray(jobs, address, stop=None):
    return run_on_ray(toy_jobs.work, jobs, toy_jobs.alone(jobs), StopFlag() if stop is None else stop, address)


def begun(folder, count):
    return [len((folder / f"{i}").read_text().splitlines()) for i in range(count)]


def flags(**given):
    return SimpleNamespace(**{"engine": "ray", "address": None, "processes": None, "threads": None} | given)


def test_jobs_end_on_ray_as_they_do_in_processes(cluster, tmp_path, capfd):
    """One raises, one exits, one is killed once, one each time; the others don't notice, nor run twice."""
    kinds = ["fine", "fails", "exits", "dies once", "slow", "fine"]
    ends = []
    for name, run in (
        ("local", lambda jobs: run_in_processes(toy_jobs.work, jobs, toy_jobs.alone(jobs), StopFlag(), 2)),
        ("ray", lambda jobs: on_ray(jobs, cluster.address)),
    ):
        (tmp_path / name).mkdir()
        ends.append(dict(run(toy_jobs.jobs_of(tmp_path / name, kinds))))
        assert begun(tmp_path / name, 6) == [1, 1, 1, 2, 1, 1]
    assert ends[0] == ends[1]
    out, errors = capfd.readouterr()
    assert all("(raylet)" in line for line in out.splitlines()), out  # Ray's daemons say themselves that a worker died
    assert errors.splitlines() == [
        "the process of 3-dies once died; it goes on from its checkpoint",
        "the process or machine of 3-dies once was lost; it goes on from its checkpoint",
    ]


def test_jobs_start_on_ray_when_what_they_need_is_done_and_together_with_their_group(cluster, tmp_path):
    jobs = toy_jobs.jobs_of(tmp_path, ["fails", "fine", "slow", "fine"])
    bad, after, slow, late = jobs
    schedule = Schedule({bad: (), after: (bad,), slow: (), late: (slow,)})
    ends = list(run_on_ray(toy_jobs.work, jobs, schedule, StopFlag(), cluster.address))
    assert dict(ends) == {
        bad: Ended("failed", "ValueError: no good"),
        after: Ended("failed", f"it needs {bad}, which failed: ValueError: no good"),
        slow: Ended("done"),
        late: Ended("done"),
    }
    assert [name for name, _ in ends if name in (slow, late)] == [slow, late]
    assert not (tmp_path / "1").exists()
    (tmp_path / "b").mkdir()
    jobs = toy_jobs.jobs_of(tmp_path / "b", ["fine", "fails"])
    schedule = Schedule(dict.fromkeys(jobs, ()), dict.fromkeys(jobs, "both"))
    ends = dict(run_on_ray(toy_jobs.work, jobs, schedule, StopFlag(), cluster.address))
    assert ends == dict.fromkeys(jobs, Ended("failed", "ValueError: no good"))
    workers = {(tmp_path / "b" / name).read_text() for name in "01"}
    assert len(workers) == 1


def test_a_job_that_always_dies_is_failed(cluster, tmp_path):
    ends = dict(on_ray(toy_jobs.jobs_of(tmp_path, ["dies", "fine"]), cluster.address))
    assert ends == {
        "0-dies": Ended("failed", "its process or machine was lost 3 times without a word (out of memory?)"),
        "1-fine": Ended("done", ""),
    }
    assert begun(tmp_path, 2) == [3, 1]


def test_a_stop_reaches_running_jobs_and_begins_nothing_new(cluster, tmp_path):
    """Also the job that does not listen yet."""
    stop = StopFlag()

    def raise_flag():
        wait_for([tmp_path / "0", tmp_path / "1"])
        stop.name = "SIGTERM"

    thread = threading.Thread(target=raise_flag)
    thread.start()
    jobs = toy_jobs.jobs_of(tmp_path, ["waits", "is deaf at first", "fine"])
    ends = dict(on_ray(jobs, cluster.address, stop))
    thread.join()
    assert ends == {"0-waits": Ended("stopped", "saved"), "1-is deaf at first": Ended("stopped", "saved")}
    assert not (tmp_path / "2").exists()


def test_a_job_that_its_machine_tells_to_end_goes_on_elsewhere(cluster, tmp_path):
    """SIGTERM to the worker alone, as from a machine that is being taken away."""

    def tell():
        wait_for([tmp_path / "0"])
        time.sleep(0.2)
        os.kill(int((tmp_path / "0").read_text()), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    jobs = {"a": ("waits once", str(tmp_path / "0"))}
    assert list(on_ray(jobs, cluster.address)) == [("a", Ended("done", ""))]
    thread.join()
    assert begun(tmp_path, 1) == [2]


def test_giving_up_midway_stops_the_jobs(cluster, tmp_path):
    running = on_ray(toy_jobs.jobs_of(tmp_path, ["fine", "waits"]), cluster.address)
    assert next(running)[0] == "0-fine"
    wait_for([tmp_path / "1"])
    running.close()
    assert (tmp_path / "1.saved").exists()


def test_what_a_cluster_has_room_for(cluster, tmp_path):
    """Its jobs get one core each and run on all machines, unless the flags say otherwise."""
    address = cluster.address
    assert slots(address) == 2
    assert processes_and_threads(flags(address=address), "cpu", 8) == (2, 1)
    assert processes_and_threads(flags(address=address, processes=5), "cpu", 8) == (5, 1)
    with pytest.raises(UserError, match=f"no machine of the cluster at {address} has 2 cores"):
        processes_and_threads(flags(address=address, threads=2), "cpu", 8)
    with pytest.raises(UserError, match="has 1 cores and 1 GPU"):
        processes_and_threads(flags(address=address), "cuda", 8)
    jobs = {"a": ("fine", str(tmp_path / "0"))}
    run = job_runner(flags(address=address, processes=1), "cpu", 1, 1)
    ends = run(toy_jobs.work, jobs, toy_jobs.alone(jobs), StopFlag())
    assert list(ends) == [("a", Ended("done", ""))]


def test_the_jobs_of_a_lost_machine_run_again_on_another(cluster, tmp_path):
    """One of two machines, each with a job, loses all its processes by SIGKILL."""

    def lose():
        wait_for([tmp_path / "0", tmp_path / "1"])
        workers = [int((tmp_path / name).read_text()) for name in "01"]
        node = cluster.nodes.pop()
        raylet = node.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)  # so that it says nothing of its worker's end
        (own,) = (pid for pid in workers if f"PPid:\t{raylet}\n" in Path(f"/proc/{pid}/status").read_text())
        os.kill(own, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    ends = dict(on_ray(toy_jobs.jobs_of(tmp_path, ["until"] * 2), cluster.address))
    thread.join()
    assert ends == {"0-until": Ended("done", ""), "1-until": Ended("done", "")}
    assert sorted(begun(tmp_path, 2)) == [1, 2]


def test_an_instance_of_its_own_stops_at_ctrl_c_and_leaves_nothing(start, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (studycore[ray])", exc_type=ModuleNotFoundError)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray keeps the instance's token
    process = start(
        HERE / "toy_jobs.py", "sweep", "ray", tmp_path, "waits", "fine", "waits", "fine", start_new_session=True
    )
    wait_for([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    os.killpg(process.pid, signal.SIGINT)  # the terminal signals the whole foreground group
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert sorted(out.splitlines()) == ["0-waits: stopped: saved", "1-fine: done: ", "2-waits: stopped: saved"]
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("address", ["closed", "localhost", "ray://localhost:10001", "localhost:99999"])
def test_an_address_without_a_cluster_gets_one_sentence(address):
    pytest.importorskip("ray", reason="Ray is not installed (studycore[ray])", exc_type=ModuleNotFoundError)
    if address == "closed":
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(UserError, match="--address: ") as caught:
        next(on_ray({"a": ("fine", "")}, address))
    assert address in str(caught.value)


def test_flags_that_cannot_be(monkeypatch):
    with pytest.raises(UserError, match="'h:1' is for --engine ray"):
        processes_and_threads(flags(engine="local", address="h:1"), "cpu", 8)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'studycore\[ray\]'"):
        processes_and_threads(flags(), "cpu", 8)
    assert list(on_ray({}, None)) == []
