"""Predictions of a trained model on new rows: `raykd predict`, and the same from Python."""

from raykd.predictions.predictor import Predictor

__all__ = ["Predictor"]
