"""The two ways in which a command ends early on purpose."""


class UserError(ValueError):
    """A mistake of the user's: one sentence that names the field or file, its value and the mend. Exit code 2."""


class Stopped(Exception):
    """The run was told to stop (SIGTERM, SIGINT) and has saved what it had. Exit code 3."""
