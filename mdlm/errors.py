"""The error that people can mend. Free of JAX."""


class InputError(ValueError):
    """What the person at the keyboard can mend: the command line prints it as one line."""

    exit_code = 2
