"""A record of an experiment: what is begun goes on, under the names of before too."""

import json

import pytest
from frame import read_results
from record import Record


@pytest.mark.parametrize(
    "name, program, origin",
    [
        ("question", "autoencoders", {"program": "python experiments/autoencoders.py"}),
        ("question", "autoencoders", {"command": "python scripts/study_avae.py --study latent"}),
        ("family", "sharing", {"program": "python experiments/sharing.py"}),
        ("family", "sharing", {"command": "python scripts/study_sharing.py --study latent"}),
    ],
)
def test_a_record_of_before_the_flag_was_renamed_goes_on(tmp_path, name, program, origin):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**origin, "settings": {"study": "latent", "task": "a"}, "rows": [{"n": 1}]}))
    assert Record(str(path), {name: "latent", "task": "a"}).rows == [{"n": 1}]
    assert read_results(path, f"experiments/{program}.py")["settings"] == {name: "latent", "task": "a"}
    with pytest.raises(ValueError, match="was made with other settings"):
        Record(str(path), {name: "pose", "task": "a"})


@pytest.mark.parametrize(
    "program, old, new",
    [("autoencoders", "study", "question"), ("sharing", "study", "family"), ("throughput", "num-texts", "num_inputs")],
)
def test_old_flags_of_experiments_name_their_successors(run, program, old, new):
    code, _, words = run(program, f"--{old}", "x")
    assert code != 0 and f"--{old} is called --{new} now" in words
