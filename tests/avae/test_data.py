"""Images and voxels from every source, the image processor, and the poses that data get."""

import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from avae_hf import AVAEConfig, AVAEImageProcessor
from avae_hf.data import ShapeTaskArguments, build_processor, load_processor, load_task
from avae_hf.layers_avae import affine_matrix, invert_affine, warp

NAMES = ["bar", "dot"]


def picture(number):
    pixels = np.zeros((12, 12), np.uint8)
    pixels[5:7, 2:10] = 200 + number
    if number % 2:
        pixels[2:5, 2:4] = 255
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="session")
def rows():
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict(
        {"image": [picture(n) for n in range(24)], "label": [n % 2 for n in range(24)]}, features=features
    )


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("shapes")
    rows.select(range(18)).to_parquet(str(folder / "train.parquet"))
    rows.select(range(18, 24)).to_parquet(str(folder / "test.parquet"))
    return folder


@pytest.fixture(scope="session")
def voxels(tmp_path_factory):
    """Packed voxels as ModelNet10 is published in parquet; one grid is empty."""
    folder = tmp_path_factory.mktemp("voxels")
    generator = np.random.default_rng(0)
    for split, number in (("train", 9), ("test", 3)):
        grids = [(generator.random((8, 8, 8)) < 0.3).astype(np.uint8) for _ in range(number)]
        grids[0][:] = 0
        table = {
            "voxels": [np.packbits(grid).tobytes() for grid in grids],
            "shape": [[8, 8, 8]] * number,
            "label": [n % 2 for n in range(number)],
        }
        Dataset.from_dict(table).cast_column("label", ClassLabel(names=["chair", "sofa"])).to_parquet(
            str(folder / f"{split}.parquet")
        )
    return folder


def load(source, size=16, dims=2, **settings):
    arguments = ShapeTaskArguments(dataset_name=str(source), **settings)
    return load_task(arguments, build_processor(arguments, size, dims, 1))


def test_parquet_images_are_padded_and_scaled(parquet):
    task = load(parquet, validation_fraction=0.2)
    assert {name: tuple(images.shape) for name, images in task.images.items()} == {
        "train": (14, 1, 16, 16),
        "validation": (4, 1, 16, 16),
        "test": (6, 1, 16, 16),
    }
    assert task.label_names == NAMES
    expected = np.pad(np.asarray(picture(18), np.float32) / 255, 2)
    np.testing.assert_allclose(task.images["test"][0, 0].numpy(), expected, atol=1e-6)


def test_every_source_is_the_same_task(parquet, rows, tmp_path, monkeypatch):
    expected = load(parquet).images["test"]
    for number, row in enumerate(rows):
        place = tmp_path / ("train" if number < 18 else "test") / NAMES[row["label"]]
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{number:02}.png")
    found = load(tmp_path).images["test"]
    assert torch.equal(found.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)
    single = load(parquet / "train.parquet", validation_fraction=0.25)
    assert sum(len(images) for images in single.images.values()) == 18
    splits = {"train": rows, "test": rows.select([18])}
    monkeypatch.setattr("redundancy_hf.images.load_dataset", lambda name, config: splits)
    assert torch.equal(load("somebody/shapes").images["test"], expected[:1])


def test_folders_of_other_forms_are_the_same_task(parquet, rows, tmp_path):
    expected = load(parquet).images["test"]
    clone = tmp_path / "clone[1]"
    (clone / "data").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(parquet / f"{split}.parquet", clone / "data" / f"{split}-00000-of-00001.parquet")
    DatasetDict(train=rows.select(range(18)), test=rows.select(range(18, len(rows)))).save_to_disk(tmp_path / "saved")
    for name in ("clone[1]", "saved"):
        assert torch.equal(load(tmp_path / name).images["test"], expected)


def test_digits_are_embedded():
    task = load("digits", 24, object_size=16, max_train_samples=20, max_test_samples=5)
    assert task.images["train"].shape == (20, 1, 24, 24) and task.images["test"].shape == (5, 1, 24, 24)
    assert 0.9 < task.images["train"].max() <= 1 and task.images["train"].min() == 0
    assert task.images["train"][..., :4, :].eq(0).all() and task.images["train"][..., 4:20, 4:20].gt(0).any()


def test_packed_voxels_and_classes(voxels):
    task = load(voxels, 16, 3, classes=["chair"], validation_fraction=0.3)
    assert task.images["train"].unique().tolist() == [0, 1], "voxels are not divided by 255"
    assert all(labels.eq(0).all() for labels in task.labels.values())
    total = sum(len(images) for images in task.images.values())
    assert total == 5 + 2 - 2, "the empty grids of train and test are left out"
    assert task.images["test"].shape[1:] == (1, 16, 16, 16)
    halved = load(voxels, 8, 3, object_size=4)
    assert halved.images["test"].shape[1:] == (1, 8, 8, 8) and halved.images["test"][..., 2:6, 2:6, 2:6].gt(0).any()


def cube_mesh():
    """A cube in the OFF format, its counts on the first line as in some of ModelNet's files."""
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    faces = ["0 1 3", "0 3 2", "4 6 7", "4 7 5", "0 4 5", "0 5 1", "2 3 7", "2 7 6", "0 2 6", "0 6 4", "1 5 7", "1 7 3"]
    lines = ["OFF8 12 0", *(" ".join(map(str, corner)) for corner in corners), *(f"3 {face}" for face in faces)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def meshes(tmp_path):
    for split, number in (("train", 4), ("test", 2)):
        (tmp_path / "box" / split).mkdir(parents=True)
        for index in range(number):
            (tmp_path / "box" / split / f"box_{index}.off").write_text(cube_mesh())
    return tmp_path


def test_meshes_are_voxelised(meshes):
    task = load(meshes, 16, 3, object_size=8, validation_fraction=0.3)
    assert task.label_names == ["box"]
    assert task.images["test"].shape == (2, 1, 16, 16, 16)
    filled = task.images["test"][0, 0]
    assert filled.sum() == 512 and filled[4:12, 4:12, 4:12].eq(1).all(), "a solid cube of 8 voxels"


def test_meshes_without_the_library_say_what_to_install(meshes, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ValueError, match=r"pip install 'redundancy-hf\[meshes\]'"):
        load(meshes, 16, 3)


def test_broken_mesh_is_named(meshes, monkeypatch):
    (meshes / "box" / "train" / "box_2.off").write_text("OFF\n3 1")
    with pytest.raises(ValueError, match="box_2.off is no mesh that can be read"):
        load(meshes, 16, 3, object_size=8)


def test_train_poses_are_fresh_and_the_others_stay(parquet):
    task, arguments = load(parquet), ShapeTaskArguments(augment=["rotation", "translation"])
    train, test = (task.in_poses(name, arguments) for name in ("train", "test"))
    assert not torch.equal(train[0]["pose"], train[0]["pose"])
    assert torch.equal(test[0]["pose"], test[0]["pose"])
    assert torch.equal(task.in_poses("test", arguments).poses, test.poses)
    batch = test.collate([test[row] for row in range(4)])
    assert set(batch) == {"pixel_values", "pose", "labels"}
    config = AVAEConfig(transforms=["rotation", "translation"])
    expected = warp(task.images["test"][:4], invert_affine(affine_matrix(config, batch["pose"])))
    torch.testing.assert_close(batch["pixel_values"], expected)
    upright = task.in_poses("train", ShapeTaskArguments(augment=["none"]))
    assert torch.equal(upright.collate([upright[0]])["pixel_values"][0], task.images["train"][0])


def test_normalised_data_have_mean_0_and_their_background(parquet):
    task = load(parquet, normalize=True)
    assert abs(task.images["train"].mean()) < 1e-5 and abs(task.images["train"].std() - 1) < 1e-4
    assert task.background == pytest.approx(task.images["train"].min().item())
    again = task.processor([picture(18)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(again, task.images["test"][:1])


PROCESSED = {
    "grey": (PIL.Image.new("L", (6, 4), 51), (1, 8, 8), 0.2),
    "colour": (PIL.Image.new("RGB", (4, 4), (0, 255, 0)), (1, 8, 8), 150 / 255),
    "bits": (PIL.Image.new("1", (4, 4), 1), (1, 8, 8), 1.0),
    "truth": (np.ones((4, 4), bool), (1, 8, 8), 1.0),
    "16 bits": (PIL.Image.fromarray(np.full((4, 4), 13107, np.uint16)), (1, 8, 8), 0.2),
    "bytes": (np.full((4, 4), 51, np.uint8), (1, 8, 8), 0.2),
    "channels last": (np.full((4, 4, 1), 51, np.uint8), (1, 8, 8), 0.2),
    "floats": (torch.full((1, 4, 4), 0.3), (1, 8, 8), 0.3),
}


@pytest.mark.parametrize(("image", "shape", "value"), PROCESSED.values(), ids=PROCESSED.keys())
def test_processor_takes_what_images_come_as(image, shape, value):
    pixels = AVAEImageProcessor(image_size=8)(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, *shape)
    assert pixels[0, 0, 4, 4].item() == pytest.approx(value, abs=2e-3) and pixels[0, 0, 0, 0] == 0


def test_processor_takes_batches_and_colour():
    processor = AVAEImageProcessor(image_size=8, num_channels=3)
    assert processor(np.zeros((5, 3, 4, 4), np.uint8), return_tensors="pt")["pixel_values"].shape == (5, 3, 8, 8)
    assert processor([PIL.Image.new("L", (4, 4))] * 2, return_tensors="pt")["pixel_values"].shape == (2, 3, 8, 8)
    arrays = processor([PIL.Image.new("L", (4, 4))])["pixel_values"]
    assert isinstance(arrays[0], np.ndarray) and arrays[0].shape == (3, 8, 8)
    solids = AVAEImageProcessor(image_size=8, spatial_dims=3)
    grid = np.ones((4, 4, 4), bool)
    pixels = solids([grid, grid], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 1, 8, 8, 8) and pixels.sum() == 2 * 64


@pytest.mark.parametrize("channels", [2, 4])
def test_processor_takes_as_many_channels_as_the_model(channels):
    processor = AVAEImageProcessor(image_size=8, num_channels=channels)
    first = np.random.default_rng(0).integers(0, 255, (channels, 6, 4), dtype=np.uint8)
    for image in (first, np.moveaxis(first, 0, -1), torch.from_numpy(first)):
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels[0, :, 1:7, 2:6], torch.from_numpy(first) / 255)
    assert processor(np.stack([first] * 3), return_tensors="pt")["pixel_values"].shape == (3, channels, 8, 8)
    mode = {2: "LA", 4: "RGBA"}[channels]
    image = PIL.Image.fromarray(np.moveaxis(first, 0, -1), mode)
    torch.testing.assert_close(processor(image, return_tensors="pt")["pixel_values"], pixels)


def test_channels_stand_where_it_is_said():
    """As many pixels as channels, where nothing tells the two apart."""
    processor, image = AVAEImageProcessor(image_size=4, num_channels=4), np.random.default_rng(0).random((4, 4, 4))
    for name, expected in (
        (None, image),
        ("channels_first", image),
        ("channels_last", np.moveaxis(image, -1, 0)),
    ):
        pixels = processor(image, return_tensors="pt", input_data_format=name)["pixel_values"][0]
        torch.testing.assert_close(pixels, torch.from_numpy(expected).float())


def test_settings_of_one_call(tmp_path):
    processor = AVAEImageProcessor(image_size=8, object_size=6)
    image = np.full((6, 6), 51, np.uint8)
    changed = {
        "do_rescale": (False, lambda pixels: pixels[4, 4] == 51),
        "rescale_factor": (1 / 51, lambda pixels: pixels[4, 4] == 1),
        "image_size": (12, lambda pixels: pixels.shape == (12, 12) and pixels[2, 2] == 0 < pixels[3, 3]),
        "object_size": (4, lambda pixels: pixels[1, 1] == 0 < pixels[2, 2]),
        "do_normalize": (True, lambda pixels: pixels[4, 4].item() == pytest.approx((0.2 - 0.1307) / 0.3081)),
        "num_channels": (1, lambda pixels: pixels[4, 4].item() == pytest.approx(0.2)),
    }
    for name, (value, is_right) in changed.items():
        assert is_right(processor(image, return_tensors="pt", **{name: value})["pixel_values"][0, 0]), name
    pixels = processor(image, return_tensors="pt", do_normalize=True, image_mean=0.0, image_std=2.0)["pixel_values"]
    assert pixels[0, 0, 4, 4].item() == pytest.approx(0.1)
    unchanged = processor(image, return_tensors="pt")["pixel_values"]
    assert unchanged.shape == (1, 1, 8, 8) and unchanged[0, 0, 4, 4].item() == pytest.approx(0.2)
    processor.save_pretrained(tmp_path)
    assert AVAEImageProcessor.from_pretrained(tmp_path, image_size=12, do_rescale=False).image_size == 12


def test_unknown_settings_are_refused(tmp_path):
    """Of a call and of the class; what else stands in a folder is kept."""
    processor = AVAEImageProcessor(image_size=8)
    with pytest.raises(TypeError, match="no argument 'retrun_tensors'; it takes return_tensors, input_data_format"):
        processor(np.zeros((4, 4)), retrun_tensors="pt")
    with pytest.raises(TypeError, match="no argument 'size'"):
        processor.preprocess(np.zeros((4, 4)), size=16)
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        AVAEImageProcessor(size=8)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"somebodys_note": 1}))
    again = AVAEImageProcessor.from_pretrained(tmp_path)
    assert again.somebodys_note == 1 and again.to_dict() == processor.to_dict() | {"somebodys_note": 1}


def test_processor_comes_back_from_its_folder(tmp_path):
    processor = AVAEImageProcessor(image_size=8, object_size=6, do_normalize=True, image_mean=0.2)
    processor.save_pretrained(tmp_path)
    again = AVAEImageProcessor.from_pretrained(tmp_path)
    image = PIL.Image.new("L", (4, 4), 99)
    first, second = (one(image, return_tensors="pt")["pixel_values"] for one in (processor, again))
    assert torch.equal(first, second)


BAD_PROCESSING = {
    "too large": (lambda: AVAEImageProcessor(image_size=8)(np.zeros((9, 4))), "does not fit into 8; set `object_size`"),
    "object size": (lambda: AVAEImageProcessor(image_size=8, object_size=9), "from 1 to `image_size` 8, got 9"),
    "dimensions": (lambda: AVAEImageProcessor(image_size=8)(np.zeros(4)), "must have 2 dimensions"),
    "format": (
        lambda: AVAEImageProcessor(8)(np.zeros((4, 4)), input_data_format="first"),
        '"channels_last", got .first',
    ),
    "size of one call": (lambda: AVAEImageProcessor(8)(np.zeros((4, 4)), object_size=9), "from 1 to `image_size` 8"),
    "channels": (lambda: AVAEImageProcessor(8, num_channels=3)(np.zeros((1, 4, 4))), "the model takes 3 channels"),
}


@pytest.mark.parametrize(("call", "message"), BAD_PROCESSING.values(), ids=BAD_PROCESSING.keys())
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


BAD_DATA = {
    "path": ({"source": "./nowhere"}, "there is no file or folder ./nowhere"),
    "hub": ({"source": "nobody/nothing"}, "could not read 'nobody/nothing'"),
    "column": ({"image_column": "img"}, "column 'img' is not in split 'train'"),
    "class": ({"classes": ["star"]}, "`classes` has \\['star'\\]; the classes are \\['bar', 'dot'\\]"),
    "augment": ({"augment": ["turn"]}, "`augment` must be some of .* or none, got \\['turn'\\]"),
    "fraction": ({"validation_fraction": 0.0}, "between 0 and 1, got 0.0"),
    "samples": ({"max_train_samples": 0}, "`max_train_samples` must be at least 1"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_is_one_clear_error(parquet, settings, message):
    with pytest.raises(ValueError, match=message):
        load(**{"source": parquet, **settings})


def test_saved_processor_decides(parquet, tmp_path):
    task = load(parquet, normalize=True, object_size=10)
    task.processor.save_pretrained(tmp_path)
    arguments = ShapeTaskArguments(dataset_name=str(parquet), max_train_samples=3)
    again = load_task(arguments, load_processor(arguments, str(tmp_path)))
    torch.testing.assert_close(again.images["test"], task.images["test"]), "statistics are those of the training"
    assert again.config_settings == task.config_settings
    assert task.config_settings["output_activation"] == "identity" and task.config_settings["background"] < 0
    with pytest.raises(ValueError, match="are for training; the folder's image processor has both"):
        load_processor(ShapeTaskArguments(normalize=True), str(tmp_path))
    with pytest.raises(ValueError, match="has no image processor"):
        load_processor(arguments, str(tmp_path / "nothing"))


def test_numbers_that_are_no_bytes_are_refused(tmp_path):
    Dataset.from_dict({"pixels": [[[0, 300], [7, -1]]] * 4}).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match="whole numbers outside 0 to 255"):
        load(tmp_path)


def test_packed_voxels_need_their_shape(voxels, tmp_path):
    Dataset.from_dict({"voxels": [b"12345678"] * 4}).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match="need a column 'shape', found \\['voxels'\\]"):
        load(tmp_path, 16, 3)
