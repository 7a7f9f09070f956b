"""Open saved folders as somebody who has only transformers does: `python fresh_process.py rows.json results.json`.

`test_hub_contract.py` runs this in an empty directory. Every row names a saved folder, or a repository on a Hub, and
the outputs it had where it was made. The answer maps every row and check to an empty string, or to the traceback of its
failure. More arguments are the only checks to run.
"""

import json
import re
import shutil
import sys
import traceback
from importlib.abc import MetaPathFinder
from pathlib import Path

OUR_PACKAGES = {"redundancy_hf", "classformer_hf", "vision_hf", "avae_hf"}


class Refuse(MetaPathFinder):
    """Raise on our packages, which an editable installation makes importable from everywhere."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in OUR_PACKAGES:
            raise ModuleNotFoundError(f"a saved folder must not need {fullname}")


sys.meta_path.insert(0, Refuse())

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.backbone_utils import BackboneMixin  # noqa: E402
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402
from transformers.models.auto.image_processing_auto import get_image_processor_config  # noqa: E402


def load(row, folder=None, auto_class=None, **kwargs):
    folder = folder or row["folders"]["saved"]
    if auto_class == "AutoBackbone":
        # transformers 5.23 asks the Hub whether it has AutoBackbone's argument, so that no folder opens
        code = transformers.PreTrainedConfig.get_config_dict(folder)[0]["auto_map"][auto_class]
        return get_class_from_dynamic_module(code, folder).from_pretrained(folder, **kwargs)
    loader = getattr(transformers, auto_class or row["auto_class"])
    return loader.from_pretrained(folder, trust_remote_code=True, **kwargs)


@torch.no_grad()
def difference(model, row, kind="saved", of="output"):
    """Largest distance from what the model gave where it was made."""
    golden = torch.load(Path(row["golden"]) / f"{kind}.pt")
    model = model.eval()
    if of == "encoder" and isinstance(model, BackboneMixin):
        output, of = model(**golden["inputs"]).feature_maps[-1], "feature_map"
    elif of == "output":
        output = model(**golden["inputs"])[row["output_name"]]
    else:
        output = model.base_model(**golden["inputs"])[0]
    assert output.shape == golden[of].shape, f"{output.shape} instead of {golden[of].shape}"
    return (output.float() - golden[of]).abs().max().item()


def check_saved(row):
    model = load(row)
    assert difference(model, row) <= 1e-6
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__


def check_sharded(row):
    assert difference(load(row, row["folders"]["sharded"]), row) <= 1e-6


def check_checkpoint(row):
    if "checkpoint" in row["folders"]:
        assert difference(load(row, row["folders"]["checkpoint"]), row, "checkpoint") <= 1e-6


def check_every_auto_class(row):
    for auto_class in row["auto_classes"]:
        model = load(row, auto_class=auto_class)
        assert model.config.model_type == row["model_type"]
        assert difference(model, row, of="encoder") <= 1e-6, auto_class


def check_saved_again(row):
    model = load(row)
    again = f"{row['name']}_again"
    model.save_pretrained(again)
    files = {path.name for path in Path(again).iterdir()}
    assert files == set(row["files"]), files
    for auto_class in row["auto_classes"]:
        assert difference(load(row, again, auto_class), row, of="encoder") <= 1e-6, auto_class
    assert difference(load(row, again), row) <= 1e-6


def check_from_config(row):
    config = load(row, auto_class="AutoConfig")
    for auto_class in row["auto_classes"]:
        model = getattr(transformers, auto_class).from_config(config, trust_remote_code=True)
        assert difference(model, row, of="encoder") > 1e-3, "random weights must differ from the saved ones"


def check_bfloat16(row):
    model = load(row, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert 0 < difference(model, row) <= row["bfloat16_tolerance"]


def check_unknown_setting(row):
    config = load(row, auto_class="AutoConfig")
    assert config.somebodys_note == {"kept": True}
    config.save_pretrained("config_again")
    assert load(row, "config_again", "AutoConfig").somebodys_note == {"kept": True}


def check_code_of_its_own(row):
    """Of two folders of one name, whose code differs in no configuration file but by the digest, each runs its own."""
    folders = [shutil.copytree(row["folders"]["saved"], f"{row['name']}_{parent}/best") for parent in "ab"]
    for path in Path(folders[1]).glob("*.py"):
        code = path.read_text()
        if path.name.startswith("configuration_"):
            path.write_text(re.sub(r"(?<=# digest of the code that travels with this file: )\w+", "another", code))
        else:
            path.write_text(f"{code}\nIS_OTHER = True\n")
    for auto_class in row["auto_classes"]:
        for folder in folders:
            config = load(row, folder, "AutoConfig")
            for model in (load(row, folder, auto_class), load(row, folder, auto_class, config=config)):
                module = sys.modules[type(model).__module__]
                assert hasattr(module, "IS_OTHER") == (folder is folders[1]), f"{auto_class} of {folder}"


def check_code_needs_trust(row):
    try:
        getattr(transformers, row["auto_class"]).from_pretrained(row["folders"]["saved"], trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    else:
        raise AssertionError("code from a folder ran without trust_remote_code=True")
    if row["model_type"] == "classformer":
        # of which the tokenizer runs none; without an answer transformers asks for one at the terminal
        tokenizer = transformers.AutoTokenizer.from_pretrained(row["folders"]["saved"], trust_remote_code=False)
        assert tokenizer.decode(tokenizer("a film")["input_ids"], skip_special_tokens=True) == "a film"


def check_pipeline(row):
    if row["task"] is None:
        return
    run = transformers.pipeline(row["task"], model=row["folders"]["saved"], trust_remote_code=True)
    for answer in run(row["examples"], top_k=1):
        answer = answer[0] if isinstance(answer, list) else answer
        assert 0 < answer["score"] <= 1 and answer["label"] in run.model.config.label2id, answer


def check_image_processor(row):
    folder = row["folders"]["saved"]
    config = get_image_processor_config(folder)
    if not config:
        return
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    if "auto_map" in config:
        assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
        shape = [8] * processor.spatial_dims
        pixels = processor([torch.ones(shape)], return_tensors="pt")["pixel_values"]
        assert load(row)(pixels, search=False).reconstruction.shape == pixels.shape


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}


def run_check(check, row):
    try:
        check(row)
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = json.loads(Path(sys.argv[1]).read_text())
    checks = {name: CHECKS[name] for name in sys.argv[3:] or CHECKS}
    results = {row["name"]: {name: run_check(check, row) for name, check in checks.items()} for row in rows}
    for row in results.values():
        row["packages_stay_away"] = str(sorted(OUR_PACKAGES & set(sys.modules)) or "")
    Path(sys.argv[2]).write_text(json.dumps(results))
