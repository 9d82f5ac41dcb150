"""The three ways in which a call of a remote model fails. None of them is an answer."""


class BackendError(Exception):
    """A call that brought no usable answer."""


class Retryable(BackendError):
    """The same call may succeed later: refused or lost connections, time-outs, 429, most 5xx.

    retry_after: seconds that the server asked to wait, or None.
    """

    def __init__(self, message, retry_after=None):
        super().__init__(message)
        self.retry_after = retry_after


class Down(Retryable):
    """The call was not tried: the server has been failing; see `tools.limits.Breaker`."""


class Fatal(BackendError):
    """The same call will never succeed: wrong key, unknown model, a request that is refused."""


class BadOutput(BackendError):
    """The server answered, but not in the form asked for.

    text: what the model wrote, if it wrote anything.
    """

    def __init__(self, message, text=None):
        super().__init__(message)
        self.text = text
