"""The autoencoders' command lines on tiny data: end to end, killed and resumed, one sentence for what can be mended."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import avae_hf
from tests.conftest import call_verb
from tests.documents import load_job

ROOT = Path(__file__).resolve().parent.parent
TINY = json.dumps({"encoder_channels": [4, 4, 6, 4], "decoder_channels": [6, 4, 4]})
DATA = [
    *("--dataset_name", "digits", "--max_train_samples", 48),
    *("--max_validation_samples", 16, "--max_test_samples", 16),
]
COMMON = [
    *(*DATA, "--object_size", 12, "--image_size", 16, "--config_overrides", TINY, "--use_cpu"),
    *("--disable_tqdm", "True", "--per_device_train_batch_size", 16, "--report_to", "none"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A plain and an affine autoencoder, the affine one trained in a process of its own."""
    output = tmp_path_factory.mktemp("trained")
    flags = [*COMMON, "--num_train_epochs", 3]
    call_verb("train-avae", *flags, "--transforms", "none", "--output_dir", output / "vae")
    command = [sys.executable, ROOT / "scripts" / "train_avae.py", *flags, "--output_dir", output / "avae"]
    done = subprocess.run(
        list(map(str, [*command, "--transforms", "rotation"])), capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return output


def test_training_leaves_a_folder_that_opens(trained):
    folder = trained / "avae" / "seed-42"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "pose_search_avae.py", "poses"}
    assert not (folder / "checkpoints").exists()
    results = json.loads((folder / "train_results.json").read_text())
    losses = [entry["eval_loss"] for entry in results["history"]]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert {path.name for path in (folder / "poses").iterdir()} == {f"epoch-{n}.npz" for n in (1, 2, 3)}
    card = (folder / "README.md").read_text()
    assert "One object on a plain background" in card and "3 latent" not in card and "6 latent numbers" in card
    model = avae_hf.AVAEModel.from_pretrained(folder)
    assert model.config.transforms == ["rotation"] and model.align(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def test_finished_training_repeats_nothing_and_another_is_refused(run, trained):
    flags = ("train_avae", *COMMON, "--transforms", "none", "--output_dir", trained / "vae", "--num_train_epochs")
    before = (trained / "vae" / "seed-42" / "model.safetensors").stat().st_mtime_ns
    code, printed, words = run(*flags, 3)
    assert code == 0 and "mean of 1" in printed, words
    assert (trained / "vae" / "seed-42" / "model.safetensors").stat().st_mtime_ns == before
    code, _, words = run(*flags, 4)
    assert code == 1 and "holds another training: --num_train_epochs (3.0, now 4.0)" in words


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_alike(trained, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "train_avae.py", *COMMON, "--num_train_epochs", 3]
    command = list(map(str, [*command, "--output_dir", tmp_path]))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("seed-42/checkpoints/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = load_file(trained / "avae" / "seed-42" / "model.safetensors")
    found = load_file(tmp_path / "seed-42" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_evaluation_prints_one_line_per_model(run, trained, tmp_path):
    models = [trained / name / "seed-42" for name in ("vae", "avae")]
    record = tmp_path / "record.json"
    code, printed, words = run(
        *("evaluate_avae", "--models", *models, *DATA),
        *("--figures_dir", tmp_path, "--results_file", record),
    )
    assert code == 0, words
    rows = json.loads(record.read_text())["rows"]
    assert [row["pose_dim"] for row in rows] == [0, 1] and all(row["squared_error"] > 0 for row in rows)
    assert "vae" in printed and "n = 16" in printed
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "reconstructions.png",
        "orientations_avae_seed-42.png",
    }


def test_verbs_are_functions(trained, tmp_path):
    """What the commands do, from Python: they return what they print and write."""
    samples = {"max_train_samples": 16, "max_validation_samples": 8, "max_test_samples": 8}
    task = avae_hf.data.ShapeTaskArguments(object_size=12, **samples)
    recipe = {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "report_to": "none", "output_dir": str(tmp_path)}
    training = avae_hf.training.AVAETrainingArguments(**recipe)
    own = {"transforms": ["none"], "image_size": 16, "config_overrides": TINY, "seeds": 2}
    rows = avae_hf.train_avae(task, training, **own)
    assert [row["seed"] for row in rows] == [42, 43] and all(row["squared_error"] > 0 for row in rows)
    models = [str(tmp_path / "seed-43"), str(trained / "avae" / "seed-42")]
    found = avae_hf.evaluate_avae(models, results_file=str(tmp_path / "record.json"))["rows"]
    assert [row["model"] for row in found] == models and "orientations" in found[1]
    assert json.loads((tmp_path / "record.json").read_text())["rows"] == found


@pytest.mark.parametrize("number", [2, 7])  # of the digits 1, 6 and 9 none, and only one
def test_orientations_are_drawn_of_the_digits_that_are_there(run, trained, tmp_path, number):
    flags = ("--models", trained / "avae" / "seed-42", *DATA, "--max_test_samples", number)
    code, _, words = run("evaluate_avae", *flags, "--figures_dir", tmp_path)
    assert code == 0, words
    assert (tmp_path / "orientations_avae_seed-42.png").is_file()


def test_searches_and_steps_are_compared_side_by_side(run, trained, tmp_path):
    flags = ["--model", trained / "vae" / "seed-42", *DATA, "--num_inputs", 4, "--rounds", 2]
    kinds = {"first": ["rotation"], "second": ["rotation", "translation"], "third": ["rotation", "--training"]}
    records = {}
    for name, more in kinds.items():
        record = tmp_path / f"{name}.json"
        code, printed, words = run("pose_search", *flags, "--results_file", record, "--transforms", *more)
        assert code == 0 and "| digits, rotation" in printed, words
        records[name] = {**json.loads(record.read_text()), "command": "of the record"}
    assert [(one["kind"], one["name"]) for one in records.values()] == [
        ("search", "digits, rotation"),
        ("search", "digits, rotation and translation"),
        ("training", "digits, rotation"),
    ]
    steps = {"third": records["third"]}
    searches = {name: record for name, record in records.items() if name not in steps}
    assert load_job("pose_search").search_table(searches).count("| digits, rotation |") == 4
    assert load_job("pose_search").training_table(steps).count("| digits, rotation |") == 2
    rows = records["first"]["rows"]
    assert set(rows) == {"direct", "control", "direct, folded", "fast"}
    assert rows["direct"]["time_ratio"] == 1
    assert rows["fast"]["worse_than_identity"] == 0 and rows["control"]["difference"] == pytest.approx(0, abs=1e-4)


@pytest.mark.clock
def test_fast_search_is_faster(run, tmp_path):
    avae_hf.AVAEModel(avae_hf.AVAEConfig(**json.loads(TINY), image_size=16)).save_pretrained(tmp_path / "model")
    avae_hf.AVAEImageProcessor(image_size=16).save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", *DATA, "--num_inputs", 4, "--rounds", 2, "--transforms", "rotation")
    code, _, words = run("pose_search", *flags, "--results_file", tmp_path / "record.json")
    assert code == 0, words
    assert json.loads((tmp_path / "record.json").read_text())["rows"]["fast"]["time_ratio"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("question", ["pose", "latent", "control"])
def test_experiment_goes_on_where_it_was_stopped(run, tmp_path, question):
    record = tmp_path / "record.json"
    flags = ["autoencoders", "--question", question, *COMMON, "--max_steps", 2, "--output_dir", tmp_path / "models"]
    flags += ["--max_validation_samples", 4, "--max_test_samples", 12, "--num_curve", 2, "--num_likelihood", 2]
    flags += ["--latent_dims", 2, "--figures_dir", tmp_path]
    flags += ["--results_file", record]
    if question == "pose":
        flags += ["--variants", "turned, VAE", "turned, AVAE", "upright, VAE"]
    code, _, words = run(*flags)
    assert code == 0, words
    rows = json.loads(record.read_text())["rows"]
    assert len(rows) == {"pose": 3, "latent": 2, "control": 2}[question]
    if question == "pose":
        assert set(rows[1]["orientations"]["1"]) == {"1", "6", "9"}
        assert len(rows[2]["robustness"]) == 13 and len(rows[2]["curves_searched"]["rotation"]) == 13
        assert {path.name for path in tmp_path.glob("*.png")} == {"record_turned.png", "record_upright.png"}
    content, job = json.loads(record.read_text()), load_job("autoencoders")
    tables = {"pose": ["pose", "disentanglement", "robustness"], "latent": [], "control": ["control"]}[question]
    assert all("| --- |" in getattr(job, f"{name}_table")({**content, "command": "x"}) for name in tables)
    code, _, words = run("autoencoders", "--draw", record, "--figures_dir", tmp_path / "pictures")
    assert code == 0, words
    assert {path.stem.removeprefix("record_") for path in (tmp_path / "pictures").iterdir()} == {
        "pose": {"angles", "epochs", "orientations_turned_AVAE"},
        "latent": {"sizes"},
        "control": {"orientations_fast", "orientations_direct"},
    }[question]
    content["rows"] = content["rows"][:1]
    record.write_text(json.dumps(content))
    weights = sorted((tmp_path / "models").glob("*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    code, _, words = run(*flags)
    assert [path.stat().st_mtime_ns for path in weights] == before, "what was trained is not trained again"
    again = json.loads(record.read_text())["rows"]
    assert code == 0 and again[0] == rows[0] and len(again) == len(rows)
    code, _, words = run(*flags, "--learning_rate", 0.01)
    assert code == 1 and "other settings" in words


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--transforms", "turn"], "--transforms must be different ones of"),
        (["--augment", "turn"], "--augment must be some of"),
        (["--image_size", 18], "multiple of 4 in 2D, got 18"),
        (["--object_size", 20], "--object_size must be from 1 to --image_size 16, got 20"),
        (["--likelihood", "poisson"], "--likelihood must be"),
        (["--likelihood", "bernoulli", "--normalize"], "the Bernoulli likelihood needs probabilities"),
        (["--config_overrides", "{latent: 3}"], "must be JSON in quotes"),
        (["--config_overrides", '{"width": 3}'], "unknown settings \\['width'\\]"),
        (["--config_overrides", '{"search": "direct"}'], "without a flag of their own, got .*; say --search instead"),
        (["--config_overrides", '{"transforms": []}'], "without a flag of their own, got .*; say --transforms instead"),
        (["--classes", "ten"], "--classes has \\['ten'\\]"),
        (["--label_column", "kind"], "'kind' is not in split"),
        (["--dataset_name", "./nowhere"], "there is no file or folder"),
        (["--seeds", 0], "--seeds must be at least 1"),
        (["--spatial_dims", 3], "must have 3 dimensions"),
        (["--learning_rate", "1e30"], "lower --learning_rate"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor must be 0 for an autoencoder"),
        (["--lerning_rate", "3"], "did you mean --learning_rate\\?"),
    ],
    ids=lambda value: "-".join(map(str, value)).strip("-") if isinstance(value, list) else "",
)
def test_training_says_what_is_wrong(run, tmp_path, flags, message):
    code, _, words = run("train_avae", *COMMON, "--num_train_epochs", 1, "--output_dir", tmp_path, *flags)
    assert code in (1, 2)
    last = words.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last), last


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("avae_*.json")))
def test_recipe_runs(run, tmp_path, recipe):
    """The published settings, but for the data and the number of steps."""
    text = json.loads((ROOT / "recipes" / f"{recipe}.json").read_text())
    flags = ["--use_cpu", "--disable_tqdm", "True", "--max_steps", 1, "--per_device_train_batch_size", 1]
    flags += ["--max_train_samples", 2, "--max_validation_samples", 1, "--max_test_samples", 1]
    flags += ["--output_dir", tmp_path / "run"]
    if text.get("spatial_dims") == 3:
        voxels = tmp_path / "voxels"
        write_voxels(voxels)
        flags += ["--dataset_name", voxels, "--image_size", 16]
    else:
        flags += ["--dataset_name", "digits"]
    code, printed, words = run("train_avae", ROOT / "recipes" / f"{recipe}.json", *flags)
    assert code == 0 and "validation squared error" in printed, words
    config = json.loads((tmp_path / "run" / "seed-42" / "config.json").read_text())
    assert config["latent_dim"] == text["latent_dim"] and config["transforms"] == (
        [] if text["transforms"] == ["none"] else text["transforms"]
    )


def write_voxels(folder):
    import numpy as np
    from datasets import ClassLabel, Dataset

    folder.mkdir()
    grid = np.zeros((8, 8, 8), np.uint8)
    grid[2:6, 3:5, 1:7] = 1
    table = {"voxels": [np.packbits(grid).tobytes()] * 8, "shape": [[8, 8, 8]] * 8, "label": [0, 1] * 4}
    rows = Dataset.from_dict(table).cast_column("label", ClassLabel(names=["chair", "sofa"]))
    rows.to_parquet(str(folder / "train.parquet"))
