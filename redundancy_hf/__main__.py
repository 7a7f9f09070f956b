"""The command `redundancy-hf VERB`: what a user runs, by name; a verb's file is imported when it is called."""

import difflib
import importlib
import sys

# by verb, its module and what it does
VERBS = {
    "search": (
        "classformer_hf.commands.search",
        "find the fastest Classformer of a checkpoint, data, machine and floor",
    ),
    "train": ("classformer_hf.commands.train", "fine-tune a text classifier with a given schedule, over seeds"),
    "pretrain": ("classformer_hf.commands.pretrain", "pretrain a shortened encoder on text"),
    "multitask": ("classformer_hf.commands.multitask", "train one encoder on several tasks before fine-tuning"),
    "evaluate": ("redundancy_hf.commands.evaluate", "score saved classifiers of texts or images, and certify them"),
    "benchmark": ("classformer_hf.commands.benchmark", "compare the latency of saved classifiers on this machine"),
    "latency-table": ("classformer_hf.commands.latency_table", "time the layers of a model, to predict any schedule"),
    "cascade": ("classformer_hf.commands.cascade", "let a fast schedule answer what it is sure of"),
    "export": ("classformer_hf.commands.export", "make a graph for ONNX Runtime, OpenVINO or torch, also in int8"),
    "publish": ("redundancy_hf.commands.publish", "verify a saved folder, push it to the Hub and read it back"),
    "classify": ("redundancy_hf.commands.classify", "use a saved folder in a clean process without these packages"),
    "train-images": ("vision_hf.commands.train_images", "train an image classifier with shared convolution weights"),
    "share": ("vision_hf.commands.share", "convert a trained image classifier to shared weights and fine-tune it"),
    "compare-images": ("vision_hf.commands.compare_images", "compare image classifiers: accuracy, size, time"),
    "explain-images": ("vision_hf.commands.explain_images", "draw kernels and what a classifier looks at"),
    "train-avae": ("avae_hf.commands.train_avae", "train an autoencoder that separates shape from pose"),
    "evaluate-avae": ("avae_hf.commands.evaluate_avae", "evaluate autoencoders on inputs in random poses"),
}
PACKAGES = sorted({module.partition(".")[0] for module, _ in VERBS.values()})


def describe_verbs() -> str:
    """List the verbs, a line each."""
    lines = [f"  {verb:<15} {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(["usage: redundancy-hf VERB [--flag value ...]; --help of a verb explains it.", "", *lines])


def run_verb(verb: str):
    """Run a verb on the command line of this process, and exit."""
    from .command import run_command

    # as help, records and messages name it, however it was started
    sys.argv[0] = f"redundancy-hf {verb}"
    run_command(importlib.import_module(VERBS[verb][0]).main)


def main():
    """Run the verb that is named first."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(describe_verbs())
    elif verb in VERBS:
        sys.argv[1:] = arguments
        run_verb(verb)
    else:
        (similar, *_) = difflib.get_close_matches(verb, VERBS, n=1) or ["--help"]
        sys.exit(f"error: there is no verb {verb!r}; did you mean `redundancy-hf {similar}`?")


if __name__ == "__main__":
    main()
