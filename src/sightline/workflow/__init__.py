"""The stages composed into what a user asks for; the command line and the Python face both call these."""

from __future__ import annotations

from sightline.workflow.classifier import Classifier, load, part_name
from sightline.workflow.demo import demo_train, draw_new
from sightline.workflow.resumption import resume
from sightline.workflow.training import train

__all__ = ["Classifier", "demo_train", "draw_new", "load", "part_name", "resume", "train"]
