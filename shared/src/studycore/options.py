"""The flags of every verb that makes runs: what changes no number."""

from dataclasses import dataclass
from typing import Literal

from studycore.bounds import NonNegativeInt, PositiveInt, Seeds, check_bounds


@dataclass(frozen=True)
class RunOptions:
    """Flags that change no number of a run, beyond the bitwise promise."""

    output_dir: str | None = None
    """Run folder; without it runs/<study>/<verb>-<time>-<hash>."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: PositiveInt | None = None
    """CPU threads per process; without it PyTorch's own choice (many runs: cores / processes)."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Dashboard that the rows are sent to as well."""
    dry_run: bool = False
    """Prints the configuration, what would run, and the time and memory of one real step, and ends."""
    print_config: bool = False
    """Prints the resolved configuration and ends."""
    resume: bool = False
    """Continues the newest unfinished run of this configuration."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def extends(self) -> bool:
        """Whether these options make a finished run go on."""
        return False


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Flags of a verb with one run."""

    num_processes: PositiveInt | None = None
    """Data-parallel processes of the run; without it one per CUDA device."""
    seeds: Seeds = 1
    """Trains this many seeds, counted up from --seed, as many runs of one configuration."""


@dataclass(frozen=True)
class SweepOptions(RunOptions):
    """Flags of a verb with many runs."""

    experiment: str | None = None
    """Runs only the experiment of this name, and what it needs."""
    start_from: NonNegativeInt = 0
    """Leaves out the experiments before this index."""
    processes: PositiveInt | None = None
    """Runs at the same time; without it one per core (CPU) or per device."""
    engine: Literal["local", "ray"] = "local"
    """Where runs are made: processes of this machine, or Ray's tasks on several (pip install 'studycore[ray]')."""
    address: str | None = None
    """With --engine ray: host:port of the cluster's head, or auto; without it Ray starts on this machine alone."""
