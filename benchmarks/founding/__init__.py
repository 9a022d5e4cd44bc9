"""The parts of `founding_table.py`."""
