"""The ways in which a command ends early: two on purpose, and what the system refuses."""

import errno
import re


class UserError(ValueError):
    """A mistake of the user's: one sentence that names the field or file, its value and the mend. Exit code 2."""


class DamagedRun(UserError):
    """What a finished run's own files say does not fit together: among many runs it is missing, with this as the reason."""


class SomeFailed(UserError):
    """Of many runs some failed, and the report on the others is written."""


class Stopped(Exception):
    """The run was told to stop (SIGTERM, SIGINT, SIGHUP), and its folder says so. Exit code 3."""


_PLACE = "choose another place, or change its owner or rights"
_SPACE = "free some space, or choose a place that has it; what was written before stays, and `resume` goes on from it"
_GONE = "it was moved or removed meanwhile, or its disk has gone; bring it back, or choose another place"
_MANY = "raise the limit (ulimit -n, ulimit -u), or make fewer runs at a time"
_MEMORY = "free some memory, or make the model, the batch or the number of runs at a time smaller"
MENDS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG), _PLACE),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), _PLACE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), _SPACE),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN), _GONE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.EAGAIN), _MANY),
    errno.ENOMEM: _MEMORY,
}
"""What to do about an error of the system, by its number. Others are faults of the program's."""


def reason_of(error: Exception) -> str:
    """Why a run ended early: the sentence of an error that is meant for its user, else the error's class and text."""
    sentence = str(error) if isinstance(error, Stopped | UserError) else refused_by_system(error)
    return sentence or f"{type(error).__name__}: {error}"


def refused_by_system(error: Exception) -> str:
    """The sentence on a place that cannot be written or has gone, a full disk, too many open files or too little memory;
    "" for any other error."""
    if isinstance(error, OSError) and (mend := MENDS.get(error.errno or 0)):
        return f"{error.filename or 'writing'}: {error.strerror}; {mend}"
    # torch has a class of its own for the memory of a GPU; on a CPU its error is a RuntimeError like any other.
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        asked = SIZE.search(str(error))
        size = asked[1] if asked else "what it needs"
        return f"memory: there is not enough for {size}; make the model or the batch smaller"
    return ""


SIZE = re.compile(r"(?:tried|unable) to allocate ([\d.]+ \w+)", re.IGNORECASE)
"""What a message of numpy's or torch's says of the size that was asked for."""
