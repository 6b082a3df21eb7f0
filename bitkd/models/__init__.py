"""Students: how they are built, compared with a teacher, measured, saved and loaded."""

from bitkd.models.artifact import load_classifier, load_student, save_student
from bitkd.models.student import ShapeSpec, StudentSpec, build_student

__all__ = ["ShapeSpec", "StudentSpec", "build_student", "load_classifier", "load_student", "save_student"]
