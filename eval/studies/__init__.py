"""Studies of what a model's frozen states give and cost, and of its tokens' geometry."""

from eval.studies.geometry import run_geometry
from eval.studies.geometry_report import GeometryReport
from eval.studies.geometry_report import markdown as geometry_markdown
from eval.studies.settings import SEPARATOR
from eval.studies.study import Subject, run_study
from eval.studies.study_report import StudyReport
from eval.studies.study_report import markdown as study_markdown

__all__ = [
    "SEPARATOR",
    "GeometryReport",
    "StudyReport",
    "Subject",
    "geometry_markdown",
    "run_geometry",
    "run_study",
    "study_markdown",
]
