"""Every command and example of the documents runs as it is printed, from a clean cache, with names of a Hub.

The Hub is on loopback and what it serves under those names is tiny; `tests/workbench.py` makes the work small.
"""

import ast
import builtins
import hashlib
import random
import re
import shutil
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetImageProcessor,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from redundancy_hf.folders import write_golden_output
from tests.conftest import SENTENCES, TINY
from tests.documents import ROOT, find_jobs, find_snippets, list_commands
from tests.loopback_hub import Hub
from tests.loopback_hub.repositories import Repository, is_large, write_pointer
from tests.test_commands import DOCUMENTS
from tests.workbench import SIZES, Workbench

OWNERS = ("FacebookAI", "alice", "google", "nyu-mll", "sentence-transformers", "somebody", "stanfordnlp", "ylecun")
OWNERS += ("your-name",)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# of the documents' programs, those that these tests stand for or that install
NOT_RUN = ("make install", "make test", "make test-slow")
# what an example leaves to its reader
GIVEN = {
    "AutoModel": "from transformers import AutoModel",
    "COMMIT": "COMMIT = __import__('huggingface_hub').HfApi().model_info('somebody/model').sha",
    "autoencoder": "from transformers import AutoModel\n"
    "autoencoder = AutoModel.from_pretrained('runs/demo-avae/avae/seed-42', trust_remote_code=True)",
    "batches": "batches = [__import__('torch').rand(4, 3, 64, 64) for _ in range(2)]",
    "folder": "folder = 'runs/mrpc/best'",
    "images": "images = [__import__('torch').rand(16, 16) for _ in range(4)]",
    "pixel_values": "pixel_values = __import__('torch').rand(2, 1, 24, 24)",
    "texts": "texts = ['a warm and clever film', 'bad']",
    "tokenizer": "tokenizer = __import__('transformers').AutoTokenizer.from_pretrained('runs/mrpc/best')",
    "plain": "from transformers import AutoModelForImageClassification\n"
    "plain = AutoModelForImageClassification.from_pretrained('google/efficientnet-b0')",
}


def find_free_names(code: str) -> set[str]:
    """Names that code uses and never binds."""
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.comprehension):
            bound |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
    return {node.id for node in names} - bound


@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_in_python_import_what_exists(document):
    for snippet in find_snippets((ROOT / document).read_text()):
        if snippet.kind == "python":
            assert find_free_names(snippet.code) <= set(GIVEN)
            imports = [node for node in ast.parse(snippet.code).body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), document, "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_scripts_of_documents_can_be_made_small(document, tmp_path):
    snippets = [snippet for snippet in find_snippets((ROOT / document).read_text()) if snippet.kind == "shell"]
    commands = [command for snippet in snippets for command in list_commands(snippet.code, tmp_path)]
    assert {name for command in commands for name in find_jobs(" ".join(command))} <= set(SIZES)


def make_pairs(number: int, generator: random.Random) -> list[dict]:
    """Texts of different lengths, no two the same, whose label a small model can learn."""
    rows = []
    for index in range(number):
        label = generator.randrange(2)
        first, second = (generator.choice(list(SENTENCES.values())[label]) for _ in range(2))
        first += generator.choice(["", " and again", " and again" * 3]) + f", take {generator.randrange(10**6)}"
        second += f", take {generator.randrange(99)}"
        rows.append({"sentence1": first, "sentence2": second, "label": label, "idx": index})
    return rows


def save_text_tasks(folder):
    """GLUE tasks and IMDB as they lie on the Hub, test labels hidden where they are."""
    generator = random.Random(0)
    splits = {name: make_pairs(number, generator) for name, number in (("train", 640), ("validation", 128))}
    splits["test"] = [{**row, "label": -1} for row in make_pairs(64, generator)]
    label, text = ClassLabel(names=["not_equivalent", "equivalent"]), Value("string")
    pairs = Features(sentence1=text, sentence2=text, label=label, idx=Value("int32"))
    single = Features(sentence=text, label=ClassLabel(names=["negative", "positive"]), idx=Value("int32"))
    glue = {
        name: DatasetDict({split: Dataset.from_list(rows, features=pairs) for split, rows in splits.items()})
        for name in ("mrpc", "rte", "qqp")
    }
    glue["qqp"] = glue["qqp"].rename_columns({"sentence1": "question1", "sentence2": "question2"})
    for name in ("sst2", "cola"):
        rows = {
            split: [{"sentence": row["sentence1"], "label": row["label"], "idx": row["idx"]} for row in rows]
            for split, rows in splits.items()
        }
        glue[name] = DatasetDict({split: Dataset.from_list(part, features=single) for split, part in rows.items()})
    save_dataset(folder / "nyu-mll" / "glue", glue)
    reviews = {
        split: [{"text": row["sentence1"], "label": row["label"]} for row in make_pairs(320, generator)]
        for split in ("train", "test")
    }
    reviews["unsupervised"] = [{**row, "label": -1} for row in reviews["train"]]
    features = Features(text=text, label=ClassLabel(names=["neg", "pos"]))
    imdb = DatasetDict({split: Dataset.from_list(part, features=features) for split, part in reviews.items()})
    save_dataset(folder / "stanfordnlp" / "imdb", {"plain_text": imdb})
    return glue


def save_local_data(folder, tasks: dict[str, DatasetDict]):
    """What a reader of the documents has: photos, texts, and the thesis' data in `path/to`."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 4)):
        for shade, name in ((0, "cat"), (100, "dog")):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for one in range(number):
                pixels = generator.integers(shade, shade + 99, (64, 64, 3)).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(place / f"{one}.png")
    text = "\n".join([text for texts in SENTENCES.values() for text in texts] * 40) + "\n"
    (folder / "my_texts.txt").write_text(text)
    (folder / "path" / "to" / "wikitext2").mkdir(parents=True)
    (folder / "path" / "to" / "wikitext2" / "train.txt").write_text(text)
    for name, splits in tasks.items():
        (folder / "path" / "to" / name).mkdir()
        for split in ("train", "validation"):
            splits[split].to_parquet(folder / "path" / "to" / name / f"{split}.parquet")


def save_dataset(folder, configurations: dict[str, DatasetDict]):
    """Parquet files and a card that names them."""
    card = "---\nconfigs:\n"
    for name, splits in configurations.items():
        card += f"- config_name: {name}\n  data_files:\n"
        for split, rows in splits.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            rows.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
            card += f"  - split: {split}\n    path: {name}/{split}-*\n"
    (folder / "README.md").write_text(card + "---\n")


def save_digits(folder):
    features = Features(image=Image(), label=ClassLabel(names=list("0123456789")))
    pictures = [PIL.Image.fromarray(np.full((28, 28), 25 * index, np.uint8)) for index in range(10)]
    rows = [{"image": picture, "label": index} for index, picture in enumerate(pictures)] * 3
    splits = {name: Dataset.from_list(rows, features=features) for name in ("train", "test")}
    save_dataset(folder / "ylecun" / "mnist", {"mnist": DatasetDict(splits)})


def teach(model, tokenizer):
    """Let a classifier learn the sentences, so that a short fine-tuning of its encoder succeeds."""
    generator, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        rows = make_pairs(16, generator)
        texts = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
        labels = torch.tensor([row["label"] for row in rows])
        model(**tokenizer(*texts, padding=True, truncation=True, return_tensors="pt"), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def save_checkpoints(folder, tokenizer):
    """Tiny models of the kind that lies under each name; those that are searched know the sentences."""
    settings = {**TINY, "num_labels": 2, "initializer_range": 0.02}
    roberta = RobertaConfig(**{**settings, "num_hidden_layers": 12})
    model = teach(RobertaForSequenceClassification(roberta), tokenizer)
    masked = RobertaForMaskedLM(roberta)
    masked.roberta.load_state_dict(model.roberta.state_dict(), strict=False)
    folders = [folder / name for name in ("FacebookAI/roberta-base", "your-name/model", "somebody/model")]
    masked.save_pretrained(folders[0])
    classformer = ClassformerConfig(**{**settings, "num_hidden_layers": 6}, gamma=[1, 1, 2, 1, 1, 1], eta=2)
    for path in folders[1:]:
        model = ClassformerForSequenceClassification(classformer).eval()
        model.save_pretrained(path)
        write_golden_output(model, path)
    for path in folders:
        tokenizer.save_pretrained(path)
    words = sorted({word for texts in SENTENCES.values() for text in texts for word in re.findall(r"\w+|,", text)})
    path = folder / MINILM
    path.mkdir(parents=True)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    words = BertTokenizer(str(path / "vocab.txt"), model_max_length=64)
    words.save_pretrained(path)
    sizes = {**settings, "num_hidden_layers": 6, "max_position_embeddings": 64, "pad_token_id": 0}
    sizes["vocab_size"] = len(words)
    teach(BertForSequenceClassification(BertConfig(**sizes)), words).bert.save_pretrained(path)
    small = EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320, num_block_repeats=[1] * 7, image_size=64
    )
    EfficientNetForImageClassification(small).save_pretrained(folder / "google" / "efficientnet-b0")
    EfficientNetImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "google" / "efficientnet-b0")


def put(hub: Hub, kind: str, name: str, folder):
    """Put a folder on the Hub, without a client."""
    repository = Repository(hub.folder / f"{kind}s" / f"{name}.git", kind, name)
    repository.folder.parent.mkdir(parents=True, exist_ok=True)
    repository.create(name.partition("/")[0])
    changes = {}
    for path in filter(lambda path: path.is_file(), folder.rglob("*")):
        content, place = path.read_bytes(), path.relative_to(folder).as_posix()
        if is_large(place, len(content)):
            digest = hashlib.sha256(content).hexdigest()
            (hub.store.folder / digest).write_bytes(content)
            content = write_pointer(digest, len(content))
        changes[place] = content
    repository.commit("refs/heads/main", repository.resolve("main"), changes, "tiny", "somebody")
    hub.repositories[kind, name] = repository


@pytest.fixture(scope="module")
def workbench(tmp_path_factory, tiny_tokenizer):
    """A folder to run commands in, and a Hub that has what the documents name."""
    folder = tmp_path_factory.mktemp("names")
    torch.manual_seed(0)
    tasks = save_text_tasks(folder / "datasets")
    save_digits(folder / "datasets")
    save_checkpoints(folder / "models", tiny_tokenizer)
    hub = Hub(folder / "hub", {name: f"hf_{name}" for name in OWNERS}).start()
    for kind in ("model", "dataset"):
        for path in (folder / f"{kind}s").glob("*/*"):
            put(hub, kind, f"{path.parent.name}/{path.name}", path)
    bench = Workbench(tmp_path_factory.mktemp("bench"), hub.environment(tmp_path_factory.mktemp("home")))
    save_local_data(bench.folder, tasks)
    shutil.copytree(folder / "models" / MINILM, bench.folder / "path" / "to" / "all-MiniLM-L6-v2")
    yield bench
    bench.stop()
    hub.stop()


def run_text(bench: Workbench, text: str, user: str = "your-name") -> list[str]:
    """Run what a text prints, in its order but for demos, which leave what others take; give what failed."""
    failures, snippets = [], find_snippets(text)
    for snippet in sorted(snippets, key=lambda snippet: not snippet.code.startswith("make ")):
        # what another document prints, too, has been run
        if snippet.code in NOT_RUN or snippet.code in bench.ran:
            continue
        bench.ran.add(snippet.code)
        code = snippet.code
        if snippet.kind == "python":
            given = "\n".join(GIVEN[name] for name in sorted(find_free_names(code)))
            (bench.folder / "example.py").write_text(f"{given}\n{code}")
            code = ".venv/bin/python example.py"
        done = bench.run(code, LOGIN_TOKEN=f"hf_{user}")
        if done.returncode != 0:
            failures.append(f"{snippet.code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
        elif snippet.output and mask(done.stdout) != mask(snippet.output):
            failures.append(f"{snippet.code}\nanswers\n{done.stdout}\nand not\n{snippet.output}")
    return failures


def mask(text: str) -> list[str]:
    """The lines of an output without what differs from run to run."""
    return re.sub(r"[0-9a-f]{40}|\d[\d.,:e+-]*", "N", textwrap.dedent(text).strip()).splitlines()


@pytest.fixture(scope="module")
def failures_of_readme(workbench):
    # where it publishes as alice
    return run_text(workbench, (ROOT / "README.md").read_text(), "alice")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_runs(request, workbench, document):
    text = (ROOT / document).read_text()
    code = "\n".join(snippet.code for snippet in find_snippets(text))
    if document == "README.md" or re.search(r"runs/(mrpc|demo)\b|FOLDER", code):
        # the others go on with what it leaves
        failures = request.getfixturevalue("failures_of_readme")
    if document != "README.md":
        # every document is for a reader who has certified nothing yet
        for path in (workbench.folder / "runs").rglob("test_readings*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        failures = run_text(workbench, text)
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
def test_failures_are_caught(workbench):
    text = (
        "`redundancy-hf evaluate nowhere --dataset_name mrpc`\n```python\nplain = (1).name\n```\n"
        "```\n$ echo 12 files; echo here\n7 files\nhere\n$ echo two\nthree\n```\n"
    )
    failures = run_text(workbench, text)
    assert len(failures) == 3
    for failure, words in zip(
        failures,
        ("there is no folder `nowhere`, and on the Hub no such model", "no attribute 'name'", "three"),
        strict=True,
    ):
        assert words in failure
    with pytest.raises(KeyError, match="undefined"):
        run_text(workbench, "```python\nundefined.name\n```\n")
