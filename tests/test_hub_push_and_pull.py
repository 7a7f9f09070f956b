"""The folder contract's way over the Hub: pushed by the stock client, opened by somebody who has only transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import run_client
from tests.loopback_hub import Hub
from tests.test_hub_contract import CONTRACTS, save_folders
from tests.test_loopback_hub import skip_without_xet

HERE = Path(__file__).resolve().parent
CHECKS = ("saved", "sharded", "every_auto_class", "code_needs_trust", "pipeline", "image_processor")
# of every package one
FEW = ("classformer_classifier", "shared_xception_classifier", "avae")

PUSH = """
import json, sys
from huggingface_hub import HfApi

for row in json.load(open(sys.argv[1])):
    for kind, folder in row["folders"].items():
        HfApi().create_repo(f"alice/{row['name']}-{kind}", private=kind == "sharded")
        HfApi().upload_folder(repo_id=f"alice/{row['name']}-{kind}", folder_path=folder)
"""


def push_and_pull(request, tmp_path, tiny_settings, contracts, with_xet):
    """Save, push and open; give what the fresh process found."""
    rows = []
    for contract in contracts:
        processor = request.getfixturevalue(contract.processor) if contract.processor else None
        (tmp_path / contract.name).mkdir()
        rows.append(save_folders(contract, tiny_settings, processor, tmp_path / contract.name))
    hub = Hub(tmp_path / "hub", {"alice": "hf_alice"}, with_xet=with_xet).start()
    try:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        run_client(hub, tmp_path, PUSH, tmp_path / "rows.json", home="pusher")
        for row in rows:
            row["folders"] = {kind: f"alice/{row['name']}-{kind}" for kind in row["folders"]}
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        command = [str(HERE / "fresh_process.py"), str(tmp_path / "rows.json"), str(tmp_path / "results.json"), *CHECKS]
        (tmp_path / "empty").mkdir()
        process = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path / "empty",
            env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "puller", "hf_alice")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert process.returncode == 0, process.stderr
        used_xet = any("xet-read-token" in path for _, _, path, _, _ in hub.requests)
    finally:
        hub.stop()
    assert used_xet == with_xet
    return json.loads((tmp_path / "results.json").read_text())


def assert_all_pass(found, contracts):
    assert set(found) == {contract.name for contract in contracts}
    for name, checks in found.items():
        assert set(checks) == {*CHECKS, "packages_stay_away"}
        assert not any(checks.values()), f"{name}: {[text for text in checks.values() if text]}"


@pytest.mark.slow
@pytest.mark.parametrize("with_xet", [False, True])
def test_folders_open_from_the_hub(request, tmp_path, tiny_settings, with_xet):
    """Of all kinds; where files go by xet, of a few."""
    if with_xet:
        skip_without_xet()
    contracts = [contract for contract in CONTRACTS if not with_xet or contract.name in FEW]
    assert_all_pass(push_and_pull(request, tmp_path, tiny_settings, contracts, with_xet), contracts)


REVISIONS = """
import json, sys, torch
from huggingface_hub import HfApi
from classformer_hf import ClassformerForSequenceClassification

model = ClassformerForSequenceClassification.from_pretrained(sys.argv[1])
first = model.push_to_hub("alice/model", private=True).oid
model.config.somebodys_note = "second"
with torch.no_grad():
    model.classifier.out_proj.bias.fill_(7.0)
second = model.push_to_hub("alice/model").oid
print(json.dumps([first, second]))
"""
LOAD = """
import sys
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(
    "alice/model", revision=sys.argv[1], code_revision=sys.argv[1], trust_remote_code=True
)
print(model.classifier.out_proj.bias.eq(7).all().item(), type(model).__module__)
"""


@pytest.mark.slow
def test_old_revision_stays_and_cached_files_need_no_server(hub, client, tiny_classifier_folder):
    first, second = json.loads(client(REVISIONS, tiny_classifier_folder).splitlines()[-1])
    stranger = {"PYTHONPATH": "", "home": "stranger"}
    assert client(LOAD, first, **stranger).split()[0] == "False"
    loaded, module = client(LOAD, second, **stranger).split()
    # the commit is in the module's name: another commit's code is another module
    assert loaded == "True" and module.startswith("transformers_modules.") and second in module
    process = client(LOAD, "main", token=None, home="nobody", check=False)
    assert process.returncode != 0 and "alice/model" in process.stderr
    hub.stop()
    assert client(LOAD, second, **stranger, HF_HUB_OFFLINE="1").split()[0] == "True"


PUSH_AND_STOP = """
import sys
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from classformer_hf import ClassformerForSequenceClassification
from redundancy_hf.training import SaveCodeCallback

class StopAfterTheFirstPush(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            trainer.push_in_progress.wait_until_done()
            raise KeyboardInterrupt

folder, name, *with_code = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
example = {**tokenizer("a film"), "labels": 1}
arguments = TrainingArguments(
    name, max_steps=2, save_steps=1, report_to="none", use_cpu=True, push_to_hub=True, hub_model_id="alice/" + name
)
model = ClassformerForSequenceClassification.from_pretrained(folder)
callbacks = [StopAfterTheFirstPush(), *(SaveCodeCallback() for _ in with_code)]
trainer = Trainer(model, arguments, train_dataset=[example] * 16, processing_class=tokenizer, callbacks=callbacks)
try:
    trainer.train()
except KeyboardInterrupt:
    pass
"""
OPEN = """
import sys
from transformers import pipeline

print(pipeline("text-classification", model="alice/" + sys.argv[1], trust_remote_code=True)("a film"))
"""


@pytest.mark.slow
def test_what_a_trainer_pushes_on_its_way_loads_with_its_code(client, tiny_classifier_folder):
    for name, *with_code in (("bare",), ("whole", "with code")):
        client(PUSH_AND_STOP, tiny_classifier_folder, name, *with_code)
        process = client(OPEN, name, home="stranger", check=False, PYTHONPATH="")
        assert (process.returncode == 0) == bool(with_code), process.stderr
        # what docs/hub.md says of it
        assert with_code or "does not appear to have a file named configuration_classformer.py" in process.stderr


UPLOAD = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo("alice/texts", private=True)
HfApi().upload_folder(repo_id="alice/texts", folder_path=sys.argv[1], commit_message="first")
HfApi().create_tag("alice/texts", tag="v1")
HfApi().upload_file(repo_id="alice/texts", path_in_repo="config.json", path_or_fileobj=b"[]")
"""


@pytest.mark.slow
def test_scripts_take_names_on_the_hub(hub, client, tiny_roberta_two_labels, tiny_text_file):
    client(UPLOAD, tiny_roberta_two_labels)
    evaluate = ("alice/texts", "--dataset_name", tiny_text_file, "--split", "train", "--max_length", 64)
    evaluate += ("--device", "cpu", "--max_examples", 8)
    benchmark = ("alice/texts", "--lengths", 8, "--rounds", 1)
    assert "8 examples" in client("evaluate_model", *evaluate, "--revision", "v1")
    assert "random ids: time by" in client("benchmark_latency", *benchmark, "--revision", "v1")
    # of the newest revision the configuration is damaged
    process = client("benchmark_latency", *benchmark, check=False)
    assert process.returncode == 1 and "its config.json cannot be read" in process.stderr, process.stderr
    process = client("evaluate_model", *evaluate, token=None, home="stranger", check=False)
    assert process.returncode == 1 and "run `hf auth login`, or set HF_TOKEN" in process.stderr, process.stderr
    process = client("evaluate_model", *evaluate, "--revision", "v9", check=False)
    assert process.returncode == 1 and "alice/texts has no revision v9" in process.stderr, process.stderr
    hub.fail("GET /api/models/alice/texts/revision/v1", status=503, times=1)
    process = client("evaluate_model", *evaluate, "--revision", "v1", home="fresh", check=False)
    assert process.returncode == 0 and "the Hub answers 503; trying again in 1 s" in process.stderr, process.stderr
    hub.stop()
    for script, arguments in (("evaluate_model", evaluate), ("benchmark_latency", benchmark)):
        client(script, *arguments, "--revision", "v1", HF_HUB_OFFLINE="1")


PUSH_CODE = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo("alice/code")
HfApi().upload_folder(repo_id="alice/code", folder_path=sys.argv[1])
code = open(sys.argv[1] + "/modeling_classformer.py").read() + "\\nprint('changed code runs')\\n"
HfApi().create_repo("alice/changed")
HfApi().upload_folder(repo_id="alice/changed", folder_path=sys.argv[1])
HfApi().upload_file(
    repo_id="alice/changed", path_in_repo="modeling_classformer.py", path_or_fileobj=code.encode()
)
"""


@pytest.mark.slow
def test_strange_code_of_the_hub_needs_trust(hub, client, tiny_classifier_folder):
    client(PUSH_CODE, tiny_classifier_folder)
    flags = ("--lengths", 8, "--rounds", 1)
    assert "random ids" in client("benchmark_latency", "alice/code", *flags)
    process = client("benchmark_latency", "alice/changed", *flags, check=False)
    assert process.returncode == 1 and "Read it in" in process.stderr and "--trust_remote_code" in process.stderr
    assert "changed code runs" not in process.stdout
    assert "changed code runs" in client("benchmark_latency", "alice/changed", *flags, "--trust_remote_code")
