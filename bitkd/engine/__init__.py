"""Fast execution of packed students: one C++ file, compiled on first use, that runs the whole encoder in one call."""
