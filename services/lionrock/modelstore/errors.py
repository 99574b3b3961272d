"""What can be wrong with a model's files.

The tree (gRPC-free: services and the command line translate it):

    ModelStoreError
    ├── UnknownModel            no such entry, or a spec that names nothing known
    ├── ModelNameInvalid        not usable as the name of a model
    ├── ModelExists             the name is taken by something else
    ├── ModelFileMissing        a file that must be there is not
    ├── ModelFileCorrupt        truncated, mislabelled, or contradicts itself
    ├── ModelFormatUnsupported  well formed as far as read, but not a format that is served
    ├── DigestMismatch          the bytes are not the ones that were promised
    └── PullFailed              the package could not be fetched
"""

from __future__ import annotations


class ModelStoreError(Exception):
    """Anything that is wrong with a model's files."""


class UnknownModel(ModelStoreError):
    """No such entry in the store, or a spec that names no known package."""


class ModelNameInvalid(ModelStoreError):
    """The name is not usable as a model's name."""


class ModelExists(ModelStoreError):
    """The store already holds another model of this name."""


class ModelFileMissing(ModelStoreError):
    """A file that belongs to the model is not there."""


class ModelFileCorrupt(ModelStoreError):
    """A file is truncated, mislabelled or contradicts itself."""


class ModelFormatUnsupported(ModelStoreError):
    """The file is of a kind that is not served."""


class DigestMismatch(ModelStoreError):
    """The bytes of a file are not those that its digest promises."""


class PullFailed(ModelStoreError):
    """A package could not be fetched from the registry."""
