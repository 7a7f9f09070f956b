"""Image tasks: the same data from every source, splits that never mix, augmentation, and clear refusals."""

import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict

from redundancy_hf.images import load_task
from vision_hf.data import (
    ImageTaskArguments,
    TrainTransform,
    build_image_processor,
    collate,
    transform_splits,
)


def load(path, **settings):
    return load_task(ImageTaskArguments(dataset_name=str(path), **settings))


def contents(split):
    return {np.asarray(image.convert("RGB")).tobytes() for image in split["image"]}


def test_parquet_and_image_folders_are_the_same_task(image_parquet, image_folder):
    tasks = [load(image_parquet), load(image_folder)]
    for task in tasks:
        assert task.label_names == ["dark", "light", "red"]
        assert {name: len(split) for name, split in task.splits.items()} == {"train": 32, "validation": 4, "test": 12}
    assert contents(tasks[0].splits["test"]) == contents(tasks[1].splits["test"])


def test_folders_of_other_forms_are_the_same_task(tmp_path, image_parquet, image_folder, image_rows, caplog):
    caplog.set_level("INFO")
    expected = contents(load(image_parquet).splits["test"])
    clone = tmp_path / "clone[1]"
    (clone / "data").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(image_parquet / f"{split}.parquet", clone / "data" / f"{split}-00000-of-00001.PARQUET")
    DatasetDict(train=image_rows.select(range(36)), eval=image_rows.select(range(36, 48))).save_to_disk(
        tmp_path / "saved"
    )
    shutil.copytree(image_folder, tmp_path / "pictures[*]")
    for name in ("clone[1]", "saved", "pictures[*]"):
        assert contents(load(tmp_path / name).splits["test"]) == expected
        column = "image" if name == "pictures[*]" else "img"
        assert f"images from {column}, labels from label; 3 classes, rows: train 32" in caplog.messages[-1]


def test_two_splits_of_one_name_are_refused(tmp_path, image_rows):
    DatasetDict(train=image_rows, dev=image_rows, validation=image_rows).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="two splits for one of .'train', 'validation'., found .'train', 'dev'"):
        load(tmp_path)


def test_hub_data_sets_are_loaded_by_name(monkeypatch, image_rows):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": image_rows.rename_column("img", "image"), "valid": image_rows.rename_column("img", "image")}

    monkeypatch.setattr("redundancy_hf.images.load_dataset", load_dataset)
    task = load("someone/pictures", dataset_config_name="small")
    assert asked == [("someone/pictures", "small")]
    assert len(task.splits["test"]) == 48, "a validation split becomes the test split where there is no other"


def test_splits_have_no_image_in_common_and_do_not_change(image_parquet):
    first, second = load(image_parquet), load(image_parquet)
    parts = [contents(first.splits[name]) for name in ("train", "validation", "test")]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert first.fingerprint == second.fingerprint != load(image_parquet, split_seed=1).fingerprint
    assert set(first.without_test().splits) == {"train", "validation"}


def test_digits_are_embedded():
    task = load("digits")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 1080, "validation": 120, "test": 597}
    assert task.head_config["id2label"][3] == "3"


def test_labels_of_any_kind_become_ids(tmp_path, image_rows):
    plain = Dataset.from_dict({"picture": image_rows["img"][:], "kind": [f"k{label}" for label in image_rows["label"]]})
    plain = plain.cast_column("picture", image_rows.features["img"])
    plain.to_parquet(str(tmp_path / "train.parquet"))
    task = load(tmp_path, image_column="picture", label_column="kind")
    assert task.label_names == ["k0", "k1", "k2"] and set(task.splits["train"]["labels"]) == {0, 1, 2}


def test_evaluation_sees_the_whole_image_and_train_another_crop_every_time(image_parquet):
    arguments = ImageTaskArguments(dataset_name=str(image_parquet))
    task = load_task(arguments)
    splits = transform_splits(task, build_image_processor(arguments, 12), arguments)
    assert torch.equal(splits["test"][0]["pixel_values"], splits["test"][0]["pixel_values"])
    assert splits["test"][0]["pixel_values"].shape == (3, 12, 12)
    draws = {splits["train"][0]["pixel_values"].sum().item() for _ in range(8)}
    assert len(draws) > 1
    batch = collate([splits["train"][row] for row in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 12, 12) and batch["labels"].dtype == torch.long


def test_augmentation_off_equals_evaluation(image_parquet):
    arguments = ImageTaskArguments(dataset_name=str(image_parquet), augmentation="none")
    task = load_task(arguments)
    processor = build_image_processor(arguments, 12)
    train = transform_splits(task, processor, arguments)["train"][:]["pixel_values"]
    images = [image.convert("RGB") for image in task.splits["train"]["image"]]
    torch.testing.assert_close(torch.stack(train), processor(images, return_tensors="pt")["pixel_values"])


GRADIENT = np.stack([np.add.outer(np.arange(8) * 20, np.arange(8) * 5)] * 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["crop", "crop_flip", "resized_crop", "none"])
def test_augmentations_keep_size_and_range(name):
    transform = TrainTransform(ImageTaskArguments(augmentation=name, crop_padding=2), 8)
    image = PIL.Image.fromarray(GRADIENT)
    results = [transform.augment(image) for _ in range(40)]
    assert all(result.shape == (8, 8, 3) and result.dtype == np.uint8 for result in results)
    # columns grow to the right, unless mirrored
    mirrored = [int(result[4, 2:6, 0][0]) > int(result[4, 2:6, 0][-1]) for result in results]
    assert any(mirrored) == (name in ("crop_flip", "resized_crop")) and not all(mirrored)
    different = {result.tobytes() for result in results}
    assert (len(different) == 1) == (name == "none")


def test_crops_are_shifts_of_the_padded_image():
    transform = TrainTransform(ImageTaskArguments(augmentation="crop", crop_padding=1), 8)
    padded = np.pad(GRADIENT, ((1, 1), (1, 1), (0, 0)))
    windows = {padded[top : top + 8, left : left + 8].tobytes() for top in range(3) for left in range(3)}
    drawn = {transform.crop(PIL.Image.fromarray(GRADIENT)).tobytes() for _ in range(200)}
    assert drawn == windows


def test_crop_pct_evaluates_on_the_middle():
    whole = build_image_processor(ImageTaskArguments(), 16)
    middle = build_image_processor(ImageTaskArguments(crop_pct=0.5), 16)
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 255
    bright = middle(PIL.Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert bright.shape == (1, 3, 16, 16)
    assert bright.min() > whole(PIL.Image.fromarray(image), return_tensors="pt")["pixel_values"].min()
    assert (bright[:, :, 3:-3, 3:-3] > 2).all()


@pytest.mark.parametrize("size", [16, 384])
def test_middle_keeps_the_shape_of_things(size):
    processor = build_image_processor(ImageTaskArguments(crop_pct=0.5), size)
    image = np.zeros((size, 3 * size, 3), np.uint8)
    image[size // 4 : 3 * size // 4, 5 * size // 4 : 7 * size // 4] = 255
    pixels = processor(PIL.Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, size, size) and (pixels[:, :, 2:-2, 2:-2] > 2).all()


BAD_ARGUMENTS = {
    "augmentation": ({"augmentation": "flip"}, "`augmentation` must be one of"),
    "fraction": ({"validation_fraction": 1.5}, "between 0 and 1, got 1.5"),
    "deviation": ({"image_std": [1, 0, 1]}, "the deviations above 0"),
    "mean": ({"image_mean": [0.5]}, "need three numbers each"),
    "crop": ({"crop_pct": 0}, "`crop_pct` must be above 0"),
    "padding": ({"crop_padding": -1}, "must not be negative, got -1"),
    "size": ({"image_size": 0}, "`image_size` must be at least 1"),
    "samples": ({"max_train_samples": 0}, "`max_train_samples` must be at least 1"),
    "missing label": ({"label_column": "kind"}, "'kind' is not in split '.*', found"),
    "missing image": ({"image_column": "picture"}, "'picture' is not in split"),
    "label as image": ({"image_column": "label", "label_column": "img"}, "must hold images"),
    "too few": ({"validation_fraction": 0.01}, "too few images"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_argument_is_one_clear_error(image_parquet, settings, message):
    with pytest.raises(ValueError, match=message):
        load(image_parquet, **settings)


def test_bad_data_is_one_clear_error(tmp_path, image_rows):
    with pytest.raises(ValueError, match="there is no file or folder"):
        load(tmp_path / "nowhere.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match="could not read"):
        load(tmp_path / "broken.parquet")
    (tmp_path / "only").mkdir()
    image_rows.to_parquet(str(tmp_path / "only" / "test.parquet"))
    with pytest.raises(ValueError, match="has no train split"):
        load(tmp_path / "only")
    (tmp_path / "one").mkdir()
    one = image_rows.remove_columns("label").add_column("label", ["dark"] * 48)
    one.to_parquet(str(tmp_path / "one" / "train.parquet"))
    with pytest.raises(ValueError, match="classes must be at least two.*has only \\['dark'\\]"):
        load(tmp_path / "one")
    (tmp_path / "gap").mkdir()
    gap = image_rows.remove_columns("label").add_column("label", ["dark", "light"] * 23 + ["dark", None])
    gap.to_parquet(str(tmp_path / "gap" / "train.parquet"))
    with pytest.raises(ValueError, match="misses 1 of 48 labels, the first in row 47"):
        load(tmp_path / "gap")
    with pytest.raises(ValueError, match="could not read 'someone/unreachable'"):
        load("someone/unreachable")
