"""A tiny data set of images, in every form in which one is stored."""

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image

TINY_XCEPTION = {
    "stem_channels": [8, 8],
    "stem_strides": [1, 1],
    "stage_channels": [16],
    "stage_strides": [2],
    "stage_blocks": [1],
    "block_depths": [2],
    "grows_late": [False],
    "exit_channels": [],
}
NAMES = ["dark", "light", "red"]


def draw_image(label, number, size=12):
    """A noisy image whose class is plain to see."""
    generator = np.random.default_rng(100 * label + number)
    colour = np.array([(40, 40, 40), (200, 200, 200), (220, 30, 30)][label])
    pixels = colour + generator.normal(0, 20, (size, size, 3))
    return PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_rows():
    """48 images of three classes as a Dataset with the columns `img` and `label`."""
    labels = [number % 3 for number in range(48)]
    features = Features({"img": Image(), "label": ClassLabel(names=NAMES)})
    images = [draw_image(label, number) for number, label in enumerate(labels)]
    return Dataset.from_dict({"img": images, "label": labels}, features=features)


@pytest.fixture(scope="session")
def image_parquet(tmp_path_factory, image_rows):
    """A folder with train.parquet and test.parquet."""
    folder = tmp_path_factory.mktemp("images")
    image_rows.select(range(36)).to_parquet(str(folder / "train.parquet"))
    image_rows.select(range(36, 48)).to_parquet(str(folder / "test.parquet"))
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory, image_rows):
    """train/CLASS/*.png and test/CLASS/*.png."""
    folder = tmp_path_factory.mktemp("imagefolder")
    for number, row in enumerate(image_rows):
        place = folder / ("train" if number < 36 else "test") / NAMES[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["img"].save(place / f"{number}.png")
    return folder


@pytest.fixture
def xception_settings():
    """Keyword arguments of a SharedXceptionConfig of two tiny layers."""
    return {**TINY_XCEPTION, "image_size": 12, "num_labels": 3}
