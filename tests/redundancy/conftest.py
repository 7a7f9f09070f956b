"""A folder as a training leaves it, to be checked, described and moved."""

import shutil

import pytest

from redundancy_hf.folders import write_golden_output


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_classifier_folder):
    """A classifier's folder as a training leaves it."""
    from classformer_hf import ClassformerForSequenceClassification

    folder = shutil.copytree(tiny_classifier_folder, tmp_path_factory.mktemp("finished") / "model")
    write_golden_output(ClassformerForSequenceClassification.from_pretrained(folder), folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"of a training")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "model")
