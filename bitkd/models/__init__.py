"""Students: how they are built, compared with a teacher, measured, saved and loaded."""
