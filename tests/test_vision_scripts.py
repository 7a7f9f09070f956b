"""The command lines for images on tiny data: training, resuming, comparing, pictures, studies, and clear refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
from transformers import pipeline

import vision_hf
from tests.conftest import call_verb
from tests.documents import load_job
from vision_hf.data import ImageTaskArguments

ROOT = Path(__file__).parent.parent
SCRIPTS, RECIPES = ROOT / "scripts", ROOT / "recipes"
SMALL = {"stem_channels": [8, 8], "stem_strides": [1, 1], "stage_channels": [16, 16, 16]}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 images of two classes in folders by class, 8 of them for the test split."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        kind = ("blue", "green")[number % 2]
        place = folder / ("test" if number >= 32 else "train") / kind
        place.mkdir(parents=True, exist_ok=True)
        colour = (number, 40, 220) if kind == "blue" else (number, 220, 40)
        PIL.Image.new("RGB", (16, 16), colour).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def flags(pictures):
    return [
        *("--dataset_name", pictures, "--validation_fraction", 0.25, "--image_size", 16, "--augmentation", "none"),
        *("--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", 8, "--report_to", "none"),
    ]


@pytest.fixture(scope="module")
def train_flags(flags):
    return [*flags, "--preset", "author-vs", "--config_overrides", json.dumps(SMALL), "--num_train_epochs", 4]


def run_process(name, *arguments, **settings):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_flags):
    """A plain and a shared network, the shared one trained in a process of its own."""
    output = tmp_path_factory.mktemp("trained")
    call_verb("train-images", *train_flags, "--output_dir", output / "plain")
    flags = (*train_flags, "--sharing_factor", 4, "--output_dir", output / "shared")
    done = run_process("train_image_classifier", *flags)
    assert done.returncode == 0, done.stderr
    return output


def test_training_leaves_a_folder_that_pipeline_opens(trained, pictures):
    folder = trained / "shared" / "seed-42"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_shared_xception.py"}
    assert not (folder / "checkpoints").exists()
    results = json.loads((folder / "train_results.json").read_text())
    assert results["accuracy"] == 1.0
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    for path in sorted((pictures / "test").rglob("*.png")):
        assert classify(str(path))[0]["label"] == path.parent.name


def test_finished_training_repeats_nothing_and_another_is_refused(run, trained, train_flags):
    folder = trained / "plain" / "seed-42"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    flags = ("train_image_classifier", *train_flags, "--output_dir", trained / "plain")
    code, printed, _ = run(*flags)
    assert code == 0 and "seed 42: validation accuracy 1.0000" in printed
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    code, _, words = run(*flags, "--learning_rate", 0.5)
    assert code == 1 and "holds another training: --learning_rate (0.1, now 0.5)" in words


@pytest.mark.slow
def test_models_are_compared_side_by_side(run, trained, flags, tmp_path):
    folders = [trained / name / "seed-42" for name in ("plain", "shared")]
    record, examples = tmp_path / "comparison.json", tmp_path / "examples"
    code, printed, words = run(
        *("compare_image_classifiers", "--models", *folders, *flags[:6], "--rounds", 2, "--results_file", record),
        *("--examples_dir", examples),
    )
    assert code == 0 and "test split, n = 8" in printed, words
    plain, shared = json.loads(record.read_text())["rows"]
    assert plain["accuracy"] == shared["accuracy"] == 1
    assert plain["expanded_parameters"] == plain["stored_parameters"] == shared["expanded_parameters"]
    assert shared["stored_parameters"] < plain["stored_parameters"]
    assert shared["file_bytes"] < plain["file_bytes"] and shared["flops"] == plain["flops"]
    images = sorted(examples.glob("*.png"))
    done = run_process("classify_elsewhere", folders[1], "--images", *images)
    assert done.returncode == 0, done.stderr
    assert "without this project's packages" in done.stdout
    for image, line in zip(images, done.stdout.splitlines()[1:], strict=True):
        assert line.split()[0] == image.stem.split("_")[-1]


@pytest.mark.parametrize("family", ["xception", "resnet", "efficientnet"])
def test_pictures_of_any_saved_folder(run, flags, tmp_path, family):
    small = {
        "xception": SMALL,
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "efficientnet": {
            **{"stem_channels": 8, "out_channels": [8], "kernel_sizes": [3], "strides": [1], "num_block_repeats": [1]},
            **{"expand_ratios": [2], "head_channels": 16},
        },
    }[family]
    for factor in (1, 2):
        code, _, words = run(
            *("train_image_classifier", *flags, "--family", family, "--config_overrides", json.dumps(small)),
            *("--sharing_factor", factor, "--max_steps", 1, "--output_dir", tmp_path / f"s{factor}"),
        )
        assert code == 0, words
    folders = [tmp_path / f"s{factor}" / "seed-42" for factor in (1, 2)]
    pictures = ("explain_images", "--models", *folders, *flags[:2], "--output_dir", tmp_path / "out", "--num_images", 2)
    code, printed, words = run(*pictures)
    assert code == 1 and "every model needs a name of its own" in words
    layer = ["--layer", "model.stages.0"] if family == "efficientnet" else []
    code, printed, words = run(*pictures, "--names", "plain", "shared", *layer)
    assert code == 0 and "wrote kernels_first.png" in printed, words
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("kernels_first.png", "kernels_second.png", "grad_cam.png", "kernels.json")
    }


@pytest.mark.slow
def test_killed_training_goes_on(train_flags, tmp_path):
    command = [
        *(sys.executable, str(SCRIPTS / "train_image_classifier.py"), *map(str, train_flags)),
        *("--num_train_epochs", "60", "--output_dir", str(tmp_path / "run")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    checkpoints, deadline = tmp_path / "run" / "seed-42" / "checkpoints", time.monotonic() + 120
    while time.monotonic() < deadline and not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("checkpoint-*"))
    # what a kill in the middle of a checkpoint leaves
    torn = checkpoints / "checkpoint-99999"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "seed-42" / "train_results.json").exists() and not checkpoints.exists()


def test_fine_tuning_takes_a_trained_folder(run, trained, flags, tmp_path):
    code, printed, words = run(
        *("train_image_classifier", *flags, "--model_name_or_path", trained / "shared" / "seed-42", "--max_steps", 1),
        *("--learning_rate", 1e-6, "--output_dir", tmp_path),
    )
    assert code == 0 and "validation accuracy 1.0000" in printed, words


def test_fine_tuning_with_a_factor_converts(run, trained, flags, tmp_path):
    plain = trained / "plain" / "seed-42"
    command = [
        "train_image_classifier",
        "--model_name_or_path",
        plain,
        *flags,
        "--max_steps",
        2,
        "--learning_rate",
        0.01,
    ]
    code, printed, words = run(*command, "--sharing_factor", 4, "--output_dir", tmp_path / "run")
    assert code == 0, words
    config = json.loads((tmp_path / "run" / "seed-42" / "config.json").read_text())
    assert config["sharing_factor"] == 4 and "validation accuracy 1.0" in printed
    weights = (tmp_path / "run" / "seed-42" / "model.safetensors").read_bytes()
    command = ["share_image_classifier", plain, *command[3:]]
    code, _, words = run(*command, "--sharing_factor", 4, "--output_dir", tmp_path / "shared")
    assert code == 0 and (tmp_path / "shared" / "seed-42" / "model.safetensors").read_bytes() == weights, words
    for flags_, message in (
        (("--sharing_factor", 1), "--sharing_factor says how many channels share a kernel"),
        ((), "required: --sharing_factor"),
        (("--sharing_factor", 4, "--family", "resnet"), "unknown --family resnet"),
    ):
        code, _, words = run(*command, *flags_, "--output_dir", tmp_path / "other")
        assert code in (1, 2) and message in words
    code, _, words = run(command[0], *command[2:], "--sharing_factor", 4, "--output_dir", tmp_path / "other")
    assert code == 2 and "required: --model_name_or_path" in words
    new = ("--family", "resnet", "--channel_divisor", 2, "--output_dir", tmp_path / "other")
    code, _, words = run("train_image_classifier", "--model_name_or_path", *command[1:], *new)
    assert code == 1 and "--family, --channel_divisor can only be of a new model" in words


def test_verbs_are_functions(trained, pictures, tmp_path, capsys):
    """What the commands do, from Python: they return what they print and write."""
    plain = str(trained / "plain" / "seed-42")
    task = ImageTaskArguments(dataset_name=str(pictures), validation_fraction=0.25, image_size=16, augmentation="none")

    def recipe(name):
        settings = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "learning_rate": 1e-6, "report_to": "none"}
        return vision_hf.training.ImageTrainingArguments(output_dir=str(tmp_path / name), **settings)

    (row,) = vision_hf.train_image_classifier(task, recipe("tuned"), model_name_or_path=plain)
    assert row["seed"] == 42 and row["accuracy"] == 1
    rows = vision_hf.share_image_classifier(plain, [2], task, recipe("shared"), seeds=2)
    assert [row["seed"] for row in rows] == [42, 43] and rows[0]["parameters"] < row["parameters"]
    shared = str(tmp_path / "shared" / "seed-43")
    record = vision_hf.compare_image_classifiers([plain, shared], rounds=1)
    assert [found["model"] for found in record["rows"]] == [plain, shared] and set(record["controls"]) == {
        "one",
        "batch",
    }
    similarity = vision_hf.explain_images(
        [plain, shared], task, ["plain", "shared"], str(tmp_path / "out"), num_images=1
    )
    assert similarity["first"]["plain"]["cosine"] == pytest.approx(1)
    assert "mean of 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`num_images` must be at least 1"):
        vision_hf.explain_images([plain], task, num_images=0)


@pytest.mark.parametrize("recipe", ["xception_cifar10", "efficientnet_imagenet"])
def test_recipe_of_the_thesis_runs(run, flags, tmp_path, recipe):
    """The published settings, but for the data, the size of the images and the number of steps."""
    text = json.loads((RECIPES / f"{recipe}.json").read_text())
    small = [*flags[:6], "--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", 2, "--max_steps", 2]
    if recipe == "xception_cifar10":
        small += ["--channel_divisor", 4]
    code, printed, words = run(
        *("train_image_classifier", RECIPES / f"{recipe}.json", *small, "--output_dir", tmp_path / "run")
    )
    assert code == 0 and "validation accuracy" in printed, words
    settings = json.loads((tmp_path / "run" / "seed-42" / "settings.json").read_text())
    for name in ("learning_rate", "momentum", "optimizer", "lr_decay_epochs", "lr_decay_factor"):
        assert settings["recipe"][name] == str(type(text[name])(text[name])), name


EXPERIMENTS = {
    "sharing": ["--family", "xception", "--variants", "plain", "depthwise, s=8"],
    "learned_sharing": ["--methods", "none", "kernels", "sparse", "--num_bases", 4, "--num_kernels", 3]
    + ["--tau_kernels", 0.01, 0.1, "--tau_prior", 0.001],
    "conversion": ["--sharing_factors", 2, "--methods", "tile", "kmeans_scaled"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_goes_on_where_it_was_stopped(run, trained, flags, tmp_path, name):
    record, plain = tmp_path / "record.json", trained / "plain" / "seed-42"
    own = {
        "sharing": ["--seeds", 1],
        "learned_sharing": ["--config_name", plain, "--seeds", 2, "--figure", tmp_path / "weights.png"],
        "conversion": ["--models", plain],
    }[name]
    command = [name, *EXPERIMENTS[name], *own, *flags, "--max_steps", 2, "--results_file", record]
    command += ["--output_dir", tmp_path / "models"]
    code, _, words = run(*command)
    assert code == 0, words
    rows = json.loads(record.read_text())["rows"]
    assert len(rows) == {"sharing": 2, "learned_sharing": 9, "conversion": 2}[name]
    content = json.loads(record.read_text())
    assert "| --- |" in load_job(name).table({**content, "command": "of the record"})
    if name == "sharing":
        assert run("sharing", "--draw", record, "--figure", tmp_path / "sharing.png")[0] == 0
        assert (tmp_path / "sharing.png").stat().st_size > 5_000
    content["rows"] = content["rows"][:1]
    record.write_text(json.dumps(content))
    code, _, words = run(*command)
    again = json.loads(record.read_text())["rows"]
    assert code == 0 and again[0] == rows[0] and len(again) >= len(rows) - 1
    code, _, words = run(*command, "--learning_rate", 0.01)
    assert code == 1 and "other settings" in words


@pytest.mark.slow
def test_sharing_counts_and_times(run, flags, tmp_path):
    record = tmp_path / "record.json"
    settings = ("sharing", "--family", "efficientnet", *flags, "--output_dir", tmp_path, "--results_file", record)
    code, _, words = run(*settings, "--time")
    assert code == 0, words
    costs = json.loads(record.read_text())["costs"]
    assert costs["plain"]["flops"] == costs["depthwise, s=4"]["flops"] == costs["control"]["flops"]
    assert costs["depthwise, s=4"]["parameters"] < costs["plain"]["parameters"]
    code, _, words = run(*settings, "--variants", "depthwise, s=3")
    assert code == 1 and "--variants has unknown ['depthwise, s=3']" in words


@pytest.mark.parametrize(
    ("flags_", "message"),
    [
        (["--family", "vgg"], "--family must be one of"),
        (["--preset", "b9"], "has the presets"),
        (["--config_overrides", "{stem: 3}"], "must be JSON in quotes"),
        (["--config_overrides", '{"depth": 3}'], "unknown settings \\['depth'\\]"),
        (
            ["--config_overrides", '{"sharing_factor": 2, "grad_reduction": "sum"}'],
            "--config_overrides is for settings without a flag of their own, got .*; say --grad_reduction and "
            "--sharing_factor instead",
        ),
        (["--config_overrides", '{"image_size": 32}'], "say --image_size instead"),
        (["--sharing_factor", "3"], "must be at least 1 and divide the .* channels, got 3"),
        (["--sharing_factor", "2", "2"], "needs one number, or one for each of"),
        (["--grad_reduction", "max"], '--grad_reduction must be "mean" or "sum"'),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--dataset_name", "no_such_folder/"], "could not read 'no_such_folder/'|there is no file or folder"),
        (["--label_column", "kind"], "'kind' is not in split"),
        (["--optimizer", "lamb"], "--optimizer must be one of"),
        (["--optim", "adafactor"], "--optim would have no effect: choose by --optimizer"),
        (["--adam_beta1", "0.8"], "--adam_beta1 would have no effect: it is for --optimizer adamw"),
        (["--lr_decay_epochs", "1", "--lr_scheduler_type", "cosine"], "--lr_scheduler_type would have no effect"),
        (["--learning_rate", "1e30", "--max_grad_norm", "0"], "lower --learning_rate"),
        (["--model_name_or_path", "no_such_model"], "no_such_model"),
        (["--lerning_rate", "3"], "unknown --lerning_rate 3; did you mean --learning_rate\\?"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_training_says_what_is_wrong(run, train_flags, tmp_path, flags_, message):
    code, _, words = run("train_image_classifier", *train_flags, "--output_dir", tmp_path / "run", *flags_)
    assert code in (1, 2)
    last = words.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last


def test_labels_are_compared_by_name(run, trained, pictures, tmp_path):
    """The same pictures in folders of other names, or in another order of names."""
    swapped = tmp_path / "swapped"
    for path in (pictures / "test").rglob("*.png"):
        for split in ("train", "test"):
            place = swapped / split / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            PIL.Image.open(path).save(place / path.name)
    folder = trained / "plain" / "seed-42"
    command = ["compare_image_classifiers", "--models", folder, "--rounds", 1, "--validation_fraction", 0.5]
    code, printed, words = run(*command, "--dataset_name", swapped)
    assert code == 0 and "1.000 +-" in printed, words
    (swapped / "test" / "blue").rename(swapped / "test" / "azure")
    (swapped / "train" / "blue").rename(swapped / "train" / "azure")
    code, _, words = run(*command, "--dataset_name", swapped)
    assert code == 1 and "the labels ['azure'], which the model does not know" in words


def test_comparison_says_what_is_wrong(run, trained, flags, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, words = run("compare_image_classifiers", "--models", tmp_path / "empty", *flags[:2])
    assert code == 1 and "is no saved model: it has no config.json" in words
    code, _, words = run("compare_image_classifiers", "--models", trained / "plain" / "seed-42", "--split", "train")
    assert code == 1 and '--split must be "validation" or "test"' in words
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in filter(Path.is_file, (trained / "plain" / "seed-42").iterdir()):
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    code, _, words = run("compare_image_classifiers", "--models", broken, *flags[:2])
    assert code == 1 and words.startswith("error: ") and words.count("\n") == 0


@pytest.mark.slow
def test_two_processes_train_images_like_one(train_flags, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, SCRIPTS / "train_image_classifier.py", *train_flags, "--output_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seed 42: validation accuracy 1.0000") == 1
    assert (tmp_path / "run" / "seed-42" / "model.safetensors").exists()
