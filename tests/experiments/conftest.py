"""Experiments import what they share by its file's name alone."""

import sys

from tests.documents import ROOT

sys.path.append(str(ROOT / "experiments"))
