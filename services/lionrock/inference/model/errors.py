"""What is wrong with a model's files.

ModelError
├── UnsupportedModel          well formed, but nothing here runs it
└── MalformedWeights          the files contradict themselves, each other or the configuration
    ├── TruncatedWeights      a tensor reaches past the end of its file
    └── MissingTensor         a tensor that the architecture needs is not there
"""


class ModelError(Exception):
    """Anything that loading a model raises on purpose. Messages name files and tensors, never contents."""


class UnsupportedModel(ModelError):
    """The files are well formed, but this engine does not run such a model."""


class MalformedWeights(ModelError):
    """The files contradict themselves, each other or the model's configuration."""


class TruncatedWeights(MalformedWeights):
    """A tensor, or the header, reaches past the end of its file."""


class MissingTensor(MalformedWeights):
    """A tensor that the architecture needs is in none of the files."""
