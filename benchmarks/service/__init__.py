"""The parts of `teacher_service.py`."""
