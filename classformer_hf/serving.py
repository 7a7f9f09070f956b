"""Where `redundancy_hf.runtimes` was: the cards of exports that were made before import it from here."""

from redundancy_hf.runtimes import ExportedClassifier

__all__ = ["ExportedClassifier"]
