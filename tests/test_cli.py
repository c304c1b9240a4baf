"""The command line: what it prints, and how it leaves."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from zoo import cli, registry

TOY = """
protocol: toy
variant: toy_mean
task: {name: toy, source: last}
model: {d_model: 8, num_layers: 1, num_heads: 2, d_ff: 8, pooling: last}
train: {steps: 20, batch_size: 16, lr: 0.02, eval_every: 10, tensorboard: false}
"""


@pytest.fixture
def zoo(capsys, monkeypatch, tmp_path):
    """`zoo(*arguments)` gives exit code, standard output and standard error, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))

    def run(*arguments):
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


COMMANDS = [
    [], ["doctor"], ["list"], ["describe"], ["data"], ["data", "prepare"], ["data", "info"], ["train"], ["evaluate"],
    ["generate"], ["compare"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command, zoo):
    code, out, _ = zoo(*command, "--help")
    assert code == 0
    assert out.startswith(f"usage: zoo {' '.join(command)}".rstrip())
    assert len(out.split("\n\n")[1]) > 10


def test_the_help_names_every_command(zoo):
    _, out, _ = zoo("--help")
    for command in COMMANDS[1:]:
        assert f"\n    {command[0]}" in out
    assert zoo("--version")[1].startswith("zoo 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["data"], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["describe", "sofmax"], "zoo: There is no mixer, model or task named 'sofmax'. Did you mean softmax?"),
        (["train", "lra/smoke/listop"], "zoo: There is no recipe 'lra/smoke/listop'. Did you mean lra/smoke/listops"),
        (["train", "lra/smoke/listops", "train.lrr=1"], "zoo: There is no key 'train.lrr'"),
        (["train", "lra/smoke/listops", "--variant", "sofmax"], "Did you mean softmax?"),
        (["train", "lra/smoke/listops", "--variant", "gone.py"], "gone.py to load a variant from"),
        (["train", "lra/smoke/listops", "--seeed", "3"], "unrecognized arguments: --seeed"),
        (["train", "lra/smoke/listops", "options.heads=3"], "options.heads: softmax has no such option. Did you mean"),
        (["train", "lra/smoke/listops", "options.num_heads=two"], "softmax with options {'num_heads': 'two'}: "),
        (["list", "soft*", "more"], "unrecognized arguments: more"),
        (["data", "prepare", "lra/listop"], "zoo: There is no task named 'lra/listop'. Did you mean lra/listops"),
        (["data", "info", "lra/listops/smok"], "zoo: ListOps has no source 'smok'; there are full, smoke, published."),
        (["data", "info", "lra/listops/smoke"], "is not prepared; run: zoo data prepare lra/listops/smoke"),
        (["compare", "lra/smoke/listops", "--variants", "softmax", "--seeds", "a"], "--seeds takes whole numbers"),
        (["compare", "lra/smoke/listops", "--variants", ","], "needs at least one variant and one seed"),
        (["compare", "lra/smoke/listops", "--variants", "softmax,softmax"], "must differ from one another"),
        (["compare", "lra/smoke/listops", "--variants", "softmax,sofmax"], "Did you mean softmax?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_exits_with_2_and_one_sentence(arguments, message, zoo, tmp_path):
    code, out, err = zoo(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["evaluate", "nowhere"], ["evaluate", "."]])
def test_a_run_that_is_not_there_exits_with_1(arguments, zoo):
    code, _, err = zoo(*arguments)
    assert code == 1
    assert "is not a run directory: it has no recipe.yaml" in err


def test_tracebacks_on_demand(zoo, monkeypatch):
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    with pytest.raises(registry.RegistryError):
        zoo("describe", "sofmax")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_says_how_to_go_on_and_has_its_code(name, zoo, monkeypatch):
    before = signal.getsignal(signal.Signals[name])
    monkeypatch.setattr(cli, "_describe", lambda _: os.kill(os.getpid(), signal.Signals[name]))
    code = 128 + signal.Signals[name]
    assert zoo("describe", "softmax") == (code, "", f"zoo: stopped by {name}; the same command goes on.\n")
    assert signal.getsignal(signal.Signals[name]) == before


def test_an_interrupt_from_elsewhere_is_one_too(zoo, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_describe", interrupt)
    assert zoo("describe", "softmax") == (130, "", "zoo: stopped by SIGINT; the same command goes on.\n")


def test_list(zoo):
    _, out, _ = zoo("list")
    head, *rows = out.splitlines()
    assert head.split() == ["name", "kind", "time", "memory", "causal", "bidir.", "mask", "decode", "title"]
    named = {row.split()[0]: row for row in rows}
    assert named.keys() == {spec.name for spec in registry.list_specs() if spec.kind != "task"}
    assert named["softmax"].split()[1:8] == ["mixer", "O(T^2)", "O(T^2)", "yes", "yes", "yes", "yes"]
    assert [row.split()[0] for row in zoo("list", "soft*")[1].splitlines()[1:]] == ["softmax"]
    assert "nystromformer" not in zoo("list", "--causal")[1]
    assert "nystromformer" in zoo("list", "--no-causal")[1]
    assert "lra/listops" in zoo("list", "--kind", "task")[1]
    assert zoo("list", "--kind", "model", "no*") == (0, "", "nothing fits.\n")
    assert zoo("list", "--kind", "model", "no*", "--json")[1] == "[]\n"


def test_recipes_are_listed(zoo):
    _, out, _ = zoo("list", "--kind", "recipe")
    assert {"lra/original/listops", "lra/small/listops", "lra/smoke/listops"} <= set(out.split())
    assert json.loads(zoo("list", "--kind", "recipe", "*/smoke/*", "--json")[1]) == [
        f"lra/smoke/{task}"
        for task in ("image", "listops", "pathfinder", "pathfinder256", "pathx", "retrieval", "text")
    ]


def test_json_has_the_facts(zoo):
    listed = {facts["name"]: facts for facts in json.loads(zoo("list", "--json")[1])}
    assert json.loads(zoo("describe", "softmax", "--json")[1]) == listed["softmax"]
    assert listed["nystromformer"]["causal"] is False
    assert json.loads(zoo("describe", "lra/listops", "--json")[1])["inputs"] == ["tokens"]
    _, text, _ = zoo("describe", "softmax")
    assert "causal         True" in text
    assert "1706.03762" in text


def test_broken_pipes_are_no_errors(monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_print_table", closed)
    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)
    cli.main(["list"])


def test_doctor(zoo, tmp_path):
    code, out, _ = zoo("doctor")
    assert code == 0
    assert f"data               {tmp_path / 'data'}" in out
    assert "lra/listops/smoke        not prepared" in out
    assert "1 x cpu" in out
    assert out.rstrip().splitlines()[-1].startswith("next: zoo ")
    import jax

    assert f"jax                {jax.__version__}" in out


@pytest.mark.parametrize(
    "arguments",
    [["train.lr=1", "--variant", "softmax", "train.steps=2"], ["--variant", "softmax", "train.lr=1", "train.steps=2"]],
    ids=["around", "after"],
)
def test_overrides_stand_before_and_after_options(arguments, zoo, monkeypatch):
    seen = []
    from zoo.training import recipe

    monkeypatch.setattr(recipe, "load_recipe", lambda *a, **k: seen.append((a, k)) or sys.exit(0))
    zoo("train", "mine.yaml", *arguments)
    assert seen == [(("mine.yaml", ["train.lr=1", "train.steps=2"]), {"variant": "softmax"})]


@pytest.mark.usefixtures("toy", "compilation_cache")
def test_train_evaluate_and_resume(zoo, tmp_path):
    (tmp_path / "mine.yaml").write_text(TOY)
    code, out, err = zoo("train", "mine.yaml", "train.seed=3", "--run-dir", "here")
    assert code == 0, err
    result = json.loads((tmp_path / "here" / "result.json").read_text())
    test = result["best"]["test"]
    said = f"accuracy {test['accuracy']:.4g}, loss {test['loss']:.4g} (best, step "
    assert out.startswith(f"toy_mean on toy/last (toy), seed 3: test {said}")
    assert "baselines: majority" in out
    assert f"{result['parameters']:,} parameters" in out
    assert "step 20/20 validation accuracy" in err
    first = out

    code, out, _ = zoo("evaluate", "here", "--split", "validation", "--which", "last")
    evaluated = json.loads(out)
    assert evaluated["accuracy"] == result["last"]["validation"]["accuracy"]
    assert (evaluated["step"], evaluated["examples"], evaluated["split"]) == (20, 37, "validation")

    assert zoo("train", "mine.yaml", "train.seed=3", "--run-dir", "here")[:2] == (0, first)
    code, _, err = zoo("train", "mine.yaml", "train.seed=3", "--run-dir", "here", "--no-resume")
    assert code == 1
    assert "here holds a run; leave out --no-resume" in err
    code, _, err = zoo("train", "mine.yaml", "--run-dir", "here")
    assert code == 1
    assert "train.seed (3 there, 0 here)" in err


@pytest.mark.usefixtures("toy", "compilation_cache")
def test_the_run_directory_follows_from_the_recipe(zoo, tmp_path, monkeypatch):
    from zoo.training import run

    folders = []
    monkeypatch.setattr(run, "train", lambda recipe, folder, **_: folders.append(folder) or sys.exit(0))
    (tmp_path / "mine.yaml").write_text(TOY)
    zoo("train", "mine.yaml")
    zoo("train", tmp_path / "mine.yaml", "train.seed=2", "--variant", "softmax")
    zoo("train", "lra/smoke/listops")
    assert folders == [Path("runs", *parts) for parts in (
        ("mine", "toy_mean-s0"), ("mine", "softmax-s2"), ("lra", "smoke", "listops", "softmax-s0")
    )]  # fmt: skip


@pytest.mark.usefixtures("toy")
def test_data_commands(zoo):
    assert json.loads(zoo("data", "info", "toy/chance")[1])["sizes"]["test"] == 29
    assert zoo("data", "prepare", "toy", "--workers", "1", "--seed", "4") == (0, ".\n", "")
