"""Lightly's active-learning concepts on a dataset of one's own: no account, no upload, the same names and formulas.

Two forms, as Lightly had them one after the other: the older with an agent, a sampler config and scorers, and the later
with a selection config of inputs and strategies. Both keep what they select as tags of a `Dataset`.
"""

from backend.lightly.agent import ActiveLearningAgent, SamplerConfig, SamplingMethod
from backend.lightly.dataset import Dataset
from backend.lightly.scorers import (
    BoundingBox,
    ObjectDetectionOutput,
    Scorer,
    ScorerClassification,
    ScorerObjectDetection,
)
from backend.lightly.selection import select
from backend.lightly.tags import INITIAL_TAG, Tags

__all__ = [
    "INITIAL_TAG",
    "ActiveLearningAgent",
    "BoundingBox",
    "Dataset",
    "ObjectDetectionOutput",
    "SamplerConfig",
    "SamplingMethod",
    "Scorer",
    "ScorerClassification",
    "ScorerObjectDetection",
    "Tags",
    "select",
]
