"""What a store did wrong, apart from what is wrong with the data in it."""


class StoreUnavailableError(ConnectionError):
    """The object store did not answer, or with errors of its own, for as long as we try; the data may be fine."""
