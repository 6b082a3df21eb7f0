"""The one error that means "the input is wrong", as opposed to "the work failed"."""


class InputError(ValueError):
    """Bad input, found before any work starts: the message says what was found, what is allowed, what to do.

    The command line prints it without a traceback and exits with code 2.
    """
