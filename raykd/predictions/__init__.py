"""Predictions of a trained model on new rows: `raykd predict`, and the same from Python and MLflow."""
