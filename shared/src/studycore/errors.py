"""The ways in which a command ends early: two on purpose, and what the system refuses."""

import errno


class UserError(ValueError):
    """A mistake of the user's: one sentence that names the field or file, its value and the mend. Exit code 2."""


class Stopped(Exception):
    """The run was told to stop (SIGTERM, SIGINT, SIGHUP) and has saved what it had. Exit code 3."""


_PLACE = "choose another place, or change its owner or rights"
_SPACE = "free some space, or choose a place that has it; what was written before stays, and `resume` goes on from it"
MENDS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG), _PLACE),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), _PLACE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), _SPACE),
}
"""What to do about an error of the system, by its number. Others are faults of the program's."""


def refused_by_system(error: OSError) -> str:
    """The sentence on a place that cannot be written or a disk that is full; "" for any other error."""
    mend = MENDS.get(error.errno or 0)
    return f"{error.filename or 'a file'}: {error.strerror}; {mend}" if mend else ""
