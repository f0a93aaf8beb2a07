"""The error that people can mend, and the end by a signal. Free of JAX."""


class InputError(ValueError):
    """What the person at the keyboard can mend: the command line prints it as one line."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """Raised by a signal that ends a command at once."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number
