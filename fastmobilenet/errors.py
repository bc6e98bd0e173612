"""The exceptions of the package."""

from __future__ import annotations


class ModelError(ValueError):
    """A model file or graph cannot be used: it is damaged, inconsistent or needs an op that is missing.

    The message names the file or node, what was found, and what would be accepted.
    """
