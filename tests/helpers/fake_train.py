"""Stands for `zoo train` in tests of what starts it: takes no time, and leaves a run directory that looks like one.

    python fake_train.py RECIPE --run-dir DIR

What it does is set by seed in the environment variable FAKE_TRAIN ("1:fail,2:slow"); without, it trains at once.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from zoo.files import seal, write_json, write_text


def main() -> None:
    text = Path(sys.argv[1]).read_text()
    recipe, folder = yaml.safe_load(text), Path(sys.argv[3])
    seed = recipe["train"]["seed"]
    tricks = dict(part.split(":") for part in os.environ.get("FAKE_TRAIN", "").split(",") if part)
    folder.mkdir(parents=True, exist_ok=True)
    sealed = f"{text}# sha256 of the lines above: {hashlib.sha256(text.encode()).hexdigest()}\n"
    write_text(folder / "recipe.yaml", sealed)
    with (folder / "starts").open("a") as file:
        file.write("x")
    trick = tricks.get(str(seed))
    if trick == "fail":
        print("noise\nzoo: the loss of step 3 is not finite.\nsecond line", file=sys.stderr)
        sys.exit(1)
    if trick == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), write_text(folder / "saved", "yes"), os._exit(143)))
        (folder / "ready").touch()
        time.sleep(60)
    score = 0.25 + 0.125 * recipe["model"]["num_layers"] + seed / 64
    split = {"accuracy": score, "loss": 1.0, "examples": 29.0}
    lines = [{"step": step, "split": "validation", **split, "accuracy": score * step / 2} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    which = {"step": 2, "validation": split, "test": {**split, "accuracy": score - 0.0625}}
    result = {
        "task": recipe["task"]["name"],
        "source": recipe["task"]["source"],
        "protocol": recipe["protocol"],
        "recipe": recipe["name"],
        "variant": recipe["variant"],
        "seed": seed,
        "parameters": 99,
        "budget": None,
        "select": "best",
        "metric": "accuracy",
        "best": which,
        "last": which,
        "baselines": {"validation": {"majority": 0.4}, "test": {"majority": 0.4}},
        "published": {},
        "steps": 2,
        "batch_size": 16,
        "max_len": 12,
        "data": None,
        "cautions": [],
        "steps_per_second": 0.5,
        "compile_seconds": 1.0,
        "memory": {"step": 2_000_000, "device_peak": None, "host_peak": 10**8},
        "environment": {
            "device": "1 x cpu", "processor": "p", "platform": "cpu", "jax": "0", "flax": "0", "zoo": "0",
            "commit": os.environ.get("FAKE_COMMIT", "abc"),
        },
    }  # fmt: skip
    write_json(folder / "result.json", seal(result))


if __name__ == "__main__":
    main()
