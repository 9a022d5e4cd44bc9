"""Models: opened with their processors, loaded, run on encoded rows."""
