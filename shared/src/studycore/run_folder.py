"""The run folder: what was asked, with what, in which state, and who is writing it."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TextIO

from studycore.configuration import config_hash, to_yaml
from studycore.errors import UserError
from studycore.files import read_json, sha256, write_atomic, write_json
from studycore.metrics_log import MetricsLog
from studycore.study import SCHEMA_VERSION, Study

RECORDED = ("torch", "numpy", "studycore")
FORM: dict[str, type] = {
    **dict.fromkeys(("study", "version", "verb", "configuration_hash", "state", "reason"), str),
    **dict.fromkeys(("git", "versions", "devices", "data_fingerprints", "times"), dict),
    **dict.fromkeys(("argv", "seeds", "resumed"), list),
}
"""What a manifest must hold to be used."""
CLAIM_FORM: dict[str, Any] = {
    **dict.fromkeys(("id", "statement", "source", "predicted", "unit", "direction", "verdict", "why"), str),
    "threshold": int | float, "n": int,
}  # fmt: skip
"""What a claim in results.json must hold to be shown."""
LOCK_TEXT = "A study's run: who writes it holds a lock on this file.\n"
RESERVE = 16 * 2**10
"""Bytes of the lock file that are given back on a full disk, so that the manifest can still say how the run ended."""
BEING_WRITTEN = "{}: another process is writing this run; wait for it or stop it first"
LOGS = (".txt", ".log", ".out", ".err")
"""Kinds of files that no run writes, such as a log that somebody keeps beside it."""


class RunFolder:
    """One run folder, opened for writing and locked against a second writer."""

    def __init__(self, folder: Path, manifest: dict[str, Any], lock: TextIO):
        self.folder, self.manifest, self._lock = folder, manifest, lock
        self.metrics = MetricsLog(folder)
        self._opened = time.monotonic()
        self._seconds_before = float(manifest["times"].get("seconds", 0.0))

    def update(self, **fields: Any) -> None:
        """Changes fields of manifest.json, atomically."""
        self.manifest.update(fields)
        seconds = self._seconds_before + time.monotonic() - self._opened
        self.manifest["times"] |= {"seconds": round(seconds, 3), "updated": now()}
        write_json(self.folder / "manifest.json", self.manifest)

    def finish(self, state: str, reason: str) -> None:
        """The last word: state done, stopped or failed, and why; on a full disk too."""
        try:
            self.update(state=state, reason=reason, pid=None)
        except OSError:
            self._lock.truncate(0)  # the reserve
            try:
                self.update(state=state, reason=reason, pid=None)
            except OSError as error:
                print(f"{self.folder}/manifest.json: cannot be written ({error.strerror}): {reason}", file=sys.stderr)
        finally:
            self.close()

    def close(self) -> None:
        """Lets others write the run."""
        self._lock.close()

    @property
    def closed(self) -> bool:
        return self._lock.closed


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_folder(root: Path, study: str, verb: str, values: Mapping[str, Any]) -> Path:
    """runs/<study>/<verb>-<time>-<hash>; the time is moved on when that folder is there."""
    stamp = time.time()
    while True:
        name = f"{verb}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(stamp))}-{config_hash(values)}"
        if not (root / study / name).exists():
            return root / study / name
        stamp += 1


def create_run(
    folder: Path,
    *,
    study: Study,
    verb: str,
    config: Mapping[str, Any],
    argv: Sequence[str],
    seeds: Sequence[int],
    devices: Mapping[str, Any],
    data: Mapping[str, str],
    claims: Sequence[Mapping[str, Any]] = (),
    **more: Any,
) -> RunFolder:
    """Makes the folder with config.yaml, claims.json and manifest.json. UserError when it holds a run already.

    `data` maps names to fingerprints; `claims` are those that the run will be judged by; `more` goes into the manifest.
    """
    check_new(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise UserError(f"--output-dir: {folder} cannot be written ({error.strerror}); choose another folder") from None
    if (folder / "manifest.json").exists():  # made meanwhile
        lock.close()
        raise UserError(f"--output-dir: {folder} holds a run already; resume it or choose another folder")
    with ExitStack() as on_failure:
        on_failure.callback(lock.close)
        write_atomic(folder / "config.yaml", to_yaml(config))
        write_json(folder / "claims.json", list(claims))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "study": study.name,
            "version": metadata.version(study.distribution),
            "verb": verb,
            "argv": list(argv),
            "git": _git_state_once(Path(str(resources.files(study.package))) / "__init__.py"),
            "configuration_hash": config_hash(config),
            "seeds": list(seeds),
            "versions": library_versions(study.libraries),
            "devices": dict(devices),
            "data_fingerprints": dict(data),
            "claims_sha256": sha256(folder / "claims.json"),
            "times": {"started": now()},
            "state": "running",
            "reason": "",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "resumed": [],
            **more,
        }
        run = RunFolder(folder, manifest, lock)
        run.update()
        on_failure.pop_all()
    return run


def check_new(folder: Path) -> None:
    """UserError when the folder holds a run already, or files and folders of somebody else's that a run might replace."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir: {folder} is a file; choose another folder")
    if (folder / "manifest.json").exists():
        if is_writing(folder):
            raise UserError(BEING_WRITTEN.format(folder))
        raise UserError(f"--output-dir: {folder} holds a run already; resume it or choose another folder")
    if not folder.is_dir() or _is_ours(folder):  # what a process left that died before it wrote the manifest is ours
        return
    others = sorted(p.name for p in folder.iterdir() if p.name[0] != "." and p.suffix not in LOGS)
    if (folder / ".lock").exists() and ((folder / ".lock").is_dir() or (folder / ".lock").stat().st_size):
        others.append(".lock")  # the one hidden file that a run writes into; an empty one may be of a run just begun
    if others:
        what = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise UserError(
            f"--output-dir: {folder} holds {what} and no run, and a run might replace it; give a new folder"
        )


def _is_ours(folder: Path) -> bool:
    lock = folder / ".lock"
    return lock.is_file() and lock.read_bytes()[: len(LOCK_TEXT)] == LOCK_TEXT.encode()


def open_run(folder: Path) -> RunFolder:
    """Opens a run folder to go on writing it. UserError when it is no run folder or is being written."""
    read_manifest(folder)
    lock = _lock(folder)
    for unfinished in folder.glob(".*.[0-9]*.tmp"):  # of write_atomic
        unfinished.unlink()
    return RunFolder(folder, read_manifest(folder), lock)


def read_manifest(folder: Path) -> dict[str, Any]:
    """UserError when `folder` is no run folder, or its manifest is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run folder; `runs` lists those there are")
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder}: holds no manifest.json, so it is no run folder; `runs` lists those there are")
    manifest = read_json(folder / "manifest.json")
    lacks = [
        key for key, form in FORM.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(key), form)
    ]
    if not lacks and "started" not in manifest["times"]:
        lacks = ["times.started"]
    if lacks:
        raise UserError(f"{folder}/manifest.json: lacks {', '.join(lacks)}; restore it or start the run again")
    return dict(manifest)


def read_results(folder: Path) -> dict[str, Any]:
    """results.json, with its metrics and claims. UserError when it is damaged, or of another form than a run writes."""
    path = folder / "results.json"
    results = read_json(path)
    metrics, claims = (results.get(key) if isinstance(results, dict) else None for key in ("metrics", "claims"))
    wrong = "" if isinstance(metrics, dict) else "metrics"
    if not isinstance(claims, list):
        wrong = wrong or "claims"
    else:
        wrong = wrong or next((f"claims, entry {n}" for n, c in enumerate(claims, start=1) if not _is_verdict(c)), "")
    if wrong:
        raise UserError(f"{path}: is no results of a run (see its {wrong}); restore it or make the run again")
    return dict(results)


def _is_verdict(claim: Any) -> bool:
    """Whether it is a claim as studycore.claims.judge_all gives it, or gave it in an earlier version."""
    if not isinstance(claim, dict) or not all(isinstance(claim.get(key), form) for key, form in CLAIM_FORM.items()):
        return False
    if claim.get("measured") is None:
        return True
    ends = claim.get("interval95")
    figures = [claim["measured"], *(ends if isinstance(ends, list) else [])]
    return len(figures) == 3 and all(isinstance(figure, int | float) for figure in figures)


def is_writing(folder: Path) -> bool:
    """Whether a process has the run open."""
    # A shared lock on a file opened for reading: those who look don't see each other, and need no right to write.
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def list_runs(root: Path, study: str) -> list[tuple[Path, dict[str, Any]]]:
    """Run folders of a study with their manifests, oldest first. Says on stderr which have a damaged one."""
    runs = []
    for path in (root / study).glob("*/manifest.json"):
        try:
            runs.append((path.parent, read_manifest(path.parent)))
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
    return sorted(runs, key=lambda item: (item[1]["times"]["started"], item[0].name))


def state_of(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The recorded state, or "interrupted" for a run that is marked running and that nobody writes."""
    if manifest["state"] == "running" and not is_writing(folder):
        return "interrupted"
    return str(manifest["state"])


def environment_changes(manifest: Mapping[str, Any], devices: Mapping[str, Any]) -> list[str]:
    """What the bitwise promise depends on and has changed since the run began: phrases, empty when nothing has."""
    then = dict(manifest["versions"]) | {
        key: manifest["devices"].get(key) for key in ("device", "threads", "world_size")
    }
    here = library_versions(tuple(manifest["versions"])) | {
        key: devices.get(key) for key in ("device", "threads", "world_size")
    }
    return [f"{key} {then[key]} -> {here.get(key)}" for key in then if then[key] != here.get(key)]


def library_versions(extra: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    from studycore.devices import versions

    return versions(*dict.fromkeys(name for name in (*RECORDED, *extra) if name != "python"))


def git_state(source: Path) -> dict[str, Any]:
    """Commit and dirtiness of the work tree that holds `source`; nulls for an installed copy."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", source.name)
    if tracked is None:
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


@cache
def _git_state_once(source: Path) -> dict[str, Any]:
    """The state when this process first asked: a sweep opens hundreds of runs."""
    return git_state(source)


def _lock(folder: Path) -> TextIO:
    """An exclusive lock that the system drops when the process ends, however it ends."""
    file = open(folder / ".lock", "a")  # noqa: SIM115 - open as long as the lock is held
    for _ in range(5):  # somebody who only looks holds it for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.05)
    else:
        file.close()
        raise UserError(BEING_WRITTEN.format(folder))
    if file.tell() < RESERVE:
        file.write(LOCK_TEXT + " " * RESERVE)
        file.flush()
    return file
