"""Whether our Pathfinder images are those of the reference generator, and how fast they are drawn.

    python benchmarks/lra/pathfinder.py statistics --facts pathfinder_stats.json   # a table, all differences in errors
    python benchmarks/lra/pathfinder.py classifier --images pathfinder_ref32.npz   # can a network tell them apart?
    python benchmarks/lra/pathfinder.py learn                                      # can a network learn the easy ones?
    python benchmarks/lra/pathfinder.py labels                                     # proofs of 10,000, and a flood
    python benchmarks/lra/pathfinder.py speed                                      # milliseconds of one core an image
    python benchmarks/lra/pathfinder.py sheet --out sheet.png                      # one row of images a set

Each writes what it found into `results/pathfinder_<command>.json` (`--json`: another file). The reference files are
statistics and images of the authors' generator (drewlinsley/pathfinder at ab9c130) run with `scipy.misc.imsave` and
`imresize` as SciPy 1.0 had them; `pathfinder_geometry.json` beside this script, of the curves themselves, was made the
same way by noting what `two_snakes`, `extend_snake` and `make_snake` returned.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.pathfinder import DIFFICULTIES, GENERATOR_VERSION, SIZES, Drawing, draw, law
from zoo.data.pathfinder_check import flood, traced_labels
from zoo.data.pathfinder_tables import tables

HERE = Path(__file__).resolve().parent
SEED = 20_201_108  # not that of the data sets
PATHS = {paddles: name for name, paddles in DIFFICULTIES.items()}
LEVELS = (32, 64, 96, 112, 128, 160, 192, 224, 250)
SHEET = [(32, "hard")] * 2 + [(32, "intermediate"), (32, "easy"), (64, "hard"), (64, "easy")]
SHEET += [(128, "hard")] * 2 + [(128, "intermediate"), (128, "easy"), (256, "hard")]
CONTROLS = {
    "control: curves as straight as at other sizes": {"continuity": 1.8},
    "control: distractors as dim as targets": {"contrast": 30},
}
# Shares of the updates by length of the curves, the set's own last: begun with these, 2,000 updates leave it at chance.
LESSONS = {3: 0.1, 4: 0.2, 5: 0.25, 6: 0.45}
# How far a flood leaps so that it crosses every gap within a curve, by size.
LEAPS = {32: 3, 64: 4, 128: 7, 256: 7}
_FLOODED = 1 << 23  # pixels of a set


def about() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("numpy", "numba", "llvmlite", "jax")
    return {
        "generator_version": GENERATOR_VERSION,
        "seed": SEED,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of each image whose means are compared, [N] each."""
    border = np.ones(images.shape[1:], bool)
    border[1:-1, 1:-1] = False
    found = {"mean": images.mean((1, 2)), "above_0": (images > 0).mean((1, 2))}
    found["border_above_0"] = (images[:, border] > 0).mean(1)
    found |= {f"at_least_{level}": (images >= level).mean((1, 2)) for level in LEVELS}
    return found


def geometry(rules: Any, drawing: Drawing) -> dict[str, np.ndarray]:
    """Numbers of the curves of each image, [N] each; `pathfinder_geometry.json` has those of the reference."""
    curves = drawing.targets.astype(float)
    ways = curves[..., 2, :] - curves[..., 0, :]
    angles = np.arctan2(ways[..., 0], ways[..., 1])
    # Without the first paddle, whose angle is known but roughly from whole pixels.
    turns = (np.diff(angles[:, :, 1:], axis=2) + np.pi) % (2 * np.pi) - np.pi
    spacing = np.linalg.norm(np.diff(curves[:, :, 1:, 2], axis=2), axis=-1)
    spans = np.linalg.norm(curves[:, :, -1, 2] - curves[:, :, 0, 1], axis=-1)
    return {
        "turn": np.abs(turns).mean((1, 2)),
        "turn_squared": (turns**2).mean((1, 2)),
        "bends_both_ways": (turns[..., 1:] * turns[..., :-1] < 0).mean((1, 2))
        if turns.shape[2] > 1
        else spans[:, 0] * 0,
        "spacing": spacing.mean((1, 2)),
        "end_to_end": spans.mean(1),
        "starts_apart": np.linalg.norm(curves[:, 0, 0, 1] - curves[:, 1, 0, 1], axis=-1),
        "ends_apart": np.linalg.norm(curves[:, 0, -1, 2] - curves[:, 1, -1, 2], axis=-1),
        "start_row": curves[:, 0, 0, 1, 0],
        "start_column": curves[:, 0, 0, 1, 1],
        "end_row": curves[:, 0, -1, 2, 0],
        "end_column": curves[:, 0, -1, 2, 1],
        "distractors": drawing.num_distractors.astype(float),
        "log_attempts": np.log(drawing.attempts),
        "margin": drawing.margins.astype(float),
        "label": drawing.labels.astype(float),
    }


def compared(name: str, ours: np.ndarray, mean: float, count: int) -> dict[str, Any]:
    """A mean of ours against one of the reference, in standard errors of their difference.

    The larger sample, ours, tells how far images are apart, in both: were they alike, that would be the better guess.
    """
    return entry(name, ours.mean(), mean, ours.std(ddof=1) * math.sqrt(1 / len(ours) + 1 / count), count)


def entry(name: str, ours: float, theirs: float, error: float, count: int) -> dict[str, Any]:
    """One row of the table."""
    errors = (ours - theirs) / error if error else 0.0 if ours == theirs else math.inf
    row = {"statistic": name, "ours": ours, "reference": theirs, "n_reference": count, "standard_errors": errors}
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def compared_deviation(name: str, ours: np.ndarray, theirs: float, count: int) -> dict[str, Any]:
    """A standard deviation over images against the reference's; its error from our fourth moment."""
    spread = ours.std(ddof=1)
    kurtosis = ((ours - ours.mean()) ** 4).mean() / spread**4
    error = spread * math.sqrt((kurtosis - 1) / 4 * (1 / len(ours) + 1 / count))
    return entry(name, spread, theirs, error, count)


def compare_images(drawing: Drawing, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """All that `pathfinder_stats.json` says of a set against ours."""
    images, labels, count = drawing.images, drawing.labels, facts["n"]
    ours = image_statistics(images)
    rows = [
        compared("mean", ours["mean"], facts["mean_intensity"]["mean"], count),
        compared_deviation(
            "mean, deviation over images", ours["mean"], facts["mean_intensity"]["std_over_images"], count
        ),
        compared("above 0", ours["above_0"], facts["frac_gt0"]["mean"], count),
        compared_deviation("above 0, deviation over images", ours["above_0"], facts["frac_gt0"]["std"], count),
        compared("above 0 at the border", ours["border_above_0"], facts["frac_border_gt0"], count),
        pixel_deviation(images, facts["pixel_std"], count),
    ]
    rows += [compared(f"at least {n}", ours[f"at_least_{n}"], facts["frac_ge"][str(n)], count) for n in LEVELS]
    for label, number in ((0, facts["negatives"]), (1, facts["positives"])):
        chosen = labels == label
        theirs = facts["mean_by_label"][str(label)], facts["frac_gt0_by_label"][str(label)]
        rows.append(compared(f"mean, label {label}", ours["mean"][chosen], theirs[0], number))
        rows.append(compared(f"above 0, label {label}", ours["above_0"][chosen], theirs[1], number))
    share = facts["positives"] / count
    rows.append(compared("share of label 1", labels.astype(float), share, count))
    full = sum(number for value, number in facts["max_pixel_hist"].items() if int(value) == 255) / count
    rows.append(compared("brightest pixel is 255", (images.max((1, 2)) == 255).astype(float), full, count))
    return rows


def pixel_deviation(images: np.ndarray, theirs: float, count: int) -> dict[str, Any]:
    """The standard deviation of all pixels; its error by the delta method over images."""
    first, second = images.mean((1, 2)), (images.astype(np.float32) ** 2).mean((1, 2))
    ours = math.sqrt(second.mean() - first.mean() ** 2)
    slope = np.array([-first.mean() / ours, 1 / (2 * ours)])
    variance = slope @ np.cov(np.stack([first, second])) @ slope
    return entry("pixel deviation", ours, theirs, math.sqrt(variance * (1 / len(images) + 1 / count)), count)


def statistics(options: argparse.Namespace) -> dict[str, Any]:
    """Draws `--count` images of every set that the reference has, and compares."""
    facts = json.loads(options.facts.read_text(encoding="utf-8"))
    curves = json.loads((HERE / "pathfinder_geometry.json").read_text(encoding="utf-8"))
    sets = {}
    for key in sorted({*facts, *curves["sets"]}, key=lambda key: [int(part) for part in key[1:].split("_")]):
        size, paddles = map(int, key[1:].split("_"))
        rules = law(size, PATHS[paddles])
        drawing = draw(rules, SEED, range(options.count))
        rows = compare_images(drawing, facts[key]) if key in facts else []
        if key in curves["sets"]:
            ours = geometry(rules, drawing) | {"image mean": drawing.images.mean((1, 2))}
            ours["image above 0"] = (drawing.images > 0).mean((1, 2))
            for name, theirs in curves["sets"][key].items():
                rows.append(compared(f"curves: {name}", ours[name], theirs["mean"], theirs["n"]))
        sets[key] = rows
        worst = max(rows, key=lambda row: abs(row["standard_errors"]))
        beyond = sum(abs(row["standard_errors"]) > 3 for row in rows)
        said = f"{key}: {len(rows)} statistics, {beyond} beyond 3 standard errors"
        print(f"{said}; farthest {worst['statistic']} {worst['standard_errors']:+.2f}", flush=True)
    every = np.array([row["standard_errors"] for rows in sets.values() for row in rows])
    return {
        "what": f"{options.count:,} images of ours against the reference, differences in their standard errors",
        "reference_of_curves": curves["what"],
        "statistics": len(every),
        "beyond_2": int((np.abs(every) > 2).sum()),
        "beyond_3": int((np.abs(every) > 3).sum()),
        "largest": float(np.abs(every).max().round(3)),
        "sets": sets,
    }


def classifier(options: argparse.Namespace) -> dict[str, Any]:
    """Trains a small network to tell ours from the reference's; its held-out accuracy, over folds."""
    theirs = np.load(options.images)["images"]
    count = len(theirs)
    ours = draw(law(32, "hard"), SEED, range(count)).images
    print(f"{count} images of each; held-out accuracy of {options.folds} folds", flush=True)
    found = {"ours": folds(ours, theirs, options.folds, options.epochs)}
    # What the network sees where there is something to see: other laws than the reference's.
    rules = law(32, "hard")
    for name, change in CONTROLS.items():
        changed = draw(dataclasses.replace(rules, **change), SEED, range(count)).images
        found[name] = folds(changed, theirs, options.folds, options.epochs)
    return {
        "what": f"held-out accuracy of a small convolutional network, {count} images of ours, {count} of the reference",
        "standard_error_by_chance": round(0.5 / math.sqrt(2 * count), 4),
        "accuracy": found,
    }


def folds(ours: np.ndarray, theirs: np.ndarray, number: int, epochs: int) -> dict[str, Any]:
    """Accuracy over the images held out of each fold."""
    images = np.concatenate([ours, theirs]).astype(np.float32)[..., None] / 255
    labels = np.concatenate([np.zeros(len(ours), np.int32), np.ones(len(theirs), np.int32)])
    order = np.random.default_rng(0).permutation(len(images))
    right, fitted = [], []
    for fold in range(number):
        held = order[fold::number]
        kept = np.setdiff1d(order, held)
        on_kept, on_held = train_network(images[kept], labels[kept], images[held], labels[held], epochs, fold)
        right.append(on_held)
        fitted.append(on_kept.mean())
        print(f"  fold {fold}: held out {on_held.mean():.3f}, fitted {on_kept.mean():.3f}", flush=True)
    return {
        "held_out": round(float(np.concatenate(right).mean()), 4),
        "folds": [round(float(part.mean()), 4) for part in right],
        "fitted": round(float(np.mean(fitted)), 4),
    }


def trainer(network: Any, rate: Any) -> tuple[Any, Any, Callable[..., Any], Callable[..., Any]]:
    """Parameters, the optimizer's state, an update by (parameters, state, images, labels), and answers."""
    import jax
    import optax
    from flax import nnx

    graph, params = nnx.split(network)
    optimizer = optax.adamw(rate, weight_decay=1e-2)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return params, optimizer.init(params), step, jax.jit(lambda params, x: nnx.merge(graph, params)(x).argmax(-1))


def turned(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images [N, H, W, C], all turned and mirrored alike."""
    x = np.rot90(images, rng.integers(4), (1, 2))
    return np.ascontiguousarray(x[:, :, ::-1] if rng.integers(2) else x)


def train_network(
    images: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray, epochs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Trains on turned and mirrored images; which answers are right on both sets, bool."""
    import jax
    import optax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            widths = (1, 16, 32, 64)
            self.convolutions = nnx.List(
                [nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in itertools.pairwise(widths)]
            )
            self.norms = nnx.List([nnx.GroupNorm(b, num_groups=4, rngs=rngs) for b in widths[1:]])
            self.head = nnx.Linear(2 * widths[-1], 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                x = nnx.gelu(norm(convolution(x)))
            return self.head(jax.numpy.concatenate([x.mean((1, 2)), x.max((1, 2))], -1))

    batch = 64
    steps = epochs * (len(images) // batch)
    params, state, step, answer = trainer(Network(nnx.Rngs(seed)), optax.cosine_decay_schedule(3e-3, steps))
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for first in range(0, len(order) - batch + 1, batch):
            rows = order[first : first + batch]
            x = turned(images[rows], rng)
            params, state = step(params, state, x, labels[rows])
    right = [np.asarray(answer(params, x)) == y for x, y in ((images, labels), (others, other_labels))]
    return right[0], right[1]


def learn(options: argparse.Namespace) -> dict[str, Any]:
    """Whether a small convolutional network learns the easy set of 32: the task can be learned from its pixels."""
    import jax
    import optax
    from flax import nnx

    class Residual(nnx.Module):
        def __init__(self, width: int, rngs: nnx.Rngs):
            self.norms = nnx.List([nnx.GroupNorm(width, num_groups=4, rngs=rngs) for _ in range(2)])
            self.convolutions = nnx.List([nnx.Conv(width, width, (3, 3), rngs=rngs) for _ in range(2)])

        def __call__(self, x: jax.Array) -> jax.Array:
            y = x
            for norm, convolution in zip(self.norms, self.convolutions, strict=True):
                y = convolution(nnx.relu(norm(y)))
            return x + y

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            widths = (1, 16, 32, 64)
            self.grow = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths)])
            self.blocks = nnx.List([nnx.List([Residual(b, rngs) for _ in range(2)]) for b in widths[1:]])
            self.head = nnx.Linear(2 * widths[-1], 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for place, (grow, blocks) in enumerate(zip(self.grow, self.blocks, strict=True)):
                x = grow(nnx.max_pool(x, (2, 2), (2, 2)) if place else x)
                for block in blocks:
                    x = block(x)
            return self.head(jax.numpy.concatenate([x.mean((1, 2)), x.max((1, 2))], -1))

    batch, held = 32, 2_000
    rate = optax.warmup_cosine_decay_schedule(0, 2e-3, min(200, options.steps // 2), options.steps)
    params, state, step, answer = trainer(Network(nnx.Rngs(0)), rate)
    rules, rng, curve, began = law(32, "easy"), np.random.default_rng(0), {}, time.process_time()
    kept = draw(rules, SEED, np.arange(options.count, options.count + held))
    tested, answers = kept.images[..., None].astype(np.float32) / 255, kept.labels

    def accuracy() -> float:
        parts = range(0, held, 500)
        right = [(np.asarray(answer(params, tested[n : n + 500])) == answers[n : n + 500]).mean() for n in parts]
        return round(float(np.mean(right)), 4)

    number = 0
    for length, share in LESSONS.items():
        drawing = draw(dataclasses.replace(rules, contour_length=length), SEED, np.arange(options.count))
        images, targets = drawing.images[..., None], drawing.labels.astype(np.int32)
        for _ in range(round(options.steps * share)):
            number += 1
            rows = rng.choice(options.count, batch, replace=False)
            x = turned(images[rows].astype(np.float32) / 255, rng)
            params, state = step(params, state, x, targets[rows])
            if number % 250 == 0:
                curve[number] = accuracy()
                print(f"{number} updates, curves of {length} paddles: {curve[number]:.4f} on those of 6", flush=True)
    curve[number] = accuracy()
    return {
        "what": f"accuracy of a residual network on {held:,} held-out images of 32 easy",
        "lessons": {f"curves of {length} paddles": share for length, share in LESSONS.items()},
        "images": options.count,
        "batch_size": batch,
        "held_out": curve,
        "label_1": round(float(answers.mean()), 4),
        "cpu_seconds": round(time.process_time() - began),
    }


def labels(options: argparse.Namespace) -> dict[str, Any]:
    """Follows the curves of every image, and floods their pixels."""
    found = {}
    for size in SIZES:
        for difficulty in DIFFICULTIES:
            count = options.count if (size, difficulty) == (32, "hard") else options.count // 10
            rules = law(size, difficulty)
            drawing = draw(rules, SEED, range(count))
            traced = traced_labels(rules, drawing)
            proven = traced >= 0
            row = {
                "images": count,
                "label_1": float(drawing.labels.mean().round(4)),
                "proven": int((traced == drawing.labels)[proven].sum()),
                "wrong": int((traced != drawing.labels)[proven].sum()),
                "both_curves_end_at_the_disc": int((~proven).sum()),
                "flood": flooded(rules, drawing),
            }
            found[f"{size} {difficulty}"] = row
            print(f"{size} {difficulty}: {row}", flush=True)
    return {
        "what": "labels against the kept curves, and against a flood of the pixels where that can tell",
        "sets": found,
    }


def flooded(rules: Any, drawing: Drawing) -> dict[str, Any]:
    """What the flood says, where it can: "apart" where it does not arrive, "joined" where it took one curve at most.

    The second is not asked at size 32, where two curves lie on each other too often for their pixels to be counted.
    """
    count = min(len(drawing.labels), _FLOODED // rules.size**2)
    labels = drawing.labels[:count]
    arrived, taken = flood(drawing.images[:count], drawing.markers[:count], LEAPS[rules.size])
    look_up = tables(rules, rules.margins[0])
    # What a curve with its discs has of bright pixels at most; two have more, unless they lie on each other.
    paddle = max(int((mark.astype(int) * rules.target_contrast / 20 * 0.8 >= 40).sum()) for mark in look_up.marks)
    most = 1.15 * paddle * rules.contour_length + 2 * math.pi * (rules.marker_radius + 0.5) ** 2
    found = {"of": count, "apart": int((~arrived).sum()), "apart_wrong": int(labels[~arrived].sum())}
    if rules.size > 32:
        joined = arrived & (taken <= most)
        found |= {"joined": int(joined.sum()), "joined_wrong": int((1 - labels[joined]).sum())}
    return found


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of one core an image, compilation apart, and those of the first call in a process."""
    start = time.process_time()
    draw(law(32, "easy"), SEED, [0])
    found: dict[str, Any] = {"first_call_seconds": round(time.process_time() - start, 2), "sets": {}}
    for size in SIZES:
        for difficulty in DIFFICULTIES:
            rules = law(size, difficulty)
            draw(rules, SEED, [0])
            start, wall, count = time.process_time(), time.perf_counter(), options.count
            drawing = draw(rules, SEED, range(count))
            used, wall = time.process_time() - start, time.perf_counter() - wall
            row = {"cpu_ms": round(1e3 * used / count, 3), "wall_ms": round(1e3 * wall / count, 3)}
            row |= {"images": count, "attempts": round(float(drawing.attempts.mean()), 1)}
            found["sets"][f"{size} {difficulty}"] = row
            print(f"{size} {difficulty}: {row}", flush=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    what = "one core, shared with other programs while this ran: CPU time is what counts"
    return {"what": what, "cpu": names[0] if names else platform.processor(), "load": os.getloadavg()[0], **found}


def sheet(options: argparse.Namespace) -> dict[str, Any]:
    """Ten images of each set, a row each; a white bar stands over those of label 1."""
    from zoo.sampling import write_png

    rows = []
    for size, difficulty in SHEET:
        drawing = draw(law(size, difficulty), SEED + len(rows), range(10))
        cells = [_cell(image, label) for image, label in zip(drawing.images, drawing.labels, strict=True)]
        rows.append(np.concatenate(cells, axis=1))
    write_png(np.concatenate(rows)[None, :, :, None], options.out)
    return {}


def _cell(image: np.ndarray, label: int) -> np.ndarray:
    times = 128 // len(image)
    shown = image.repeat(times, 0).repeat(times, 1) if times else image[::2, ::2]
    cell = np.full((136, 132), 60, np.uint8)
    cell[6:134, 2:130] = shown
    cell[1:5, 2:130] = 255 if label else 60
    return cell


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for run, count in (
        (statistics, 2_000),
        (classifier, None),
        (learn, 40_000),
        (labels, 10_000),
        (speed, 200),
        (sheet, None),
    ):
        sub = commands.add_parser(run.__name__, help=(run.__doc__ or "").split("\n")[0])
        sub.set_defaults(run=run)
        sub.add_argument("--json", type=Path, default=HERE / "results" / f"pathfinder_{run.__name__}.json")
        if count is not None:
            sub.add_argument("--count", type=int, default=count, help=f"images of a set (default: {count})")
        if run is statistics:
            sub.add_argument("--facts", type=Path, required=True, help="statistics of the reference's images")
        elif run is classifier:
            sub.add_argument("--images", type=Path, required=True, help="images of the reference's, npz")
            sub.add_argument("--folds", type=int, default=4)
            sub.add_argument("--epochs", type=int, default=30)
        elif run is learn:
            sub.add_argument("--steps", type=int, default=5_000, help="updates of 32 images (default: 5000)")
        elif run is sheet:
            sub.add_argument("--out", type=Path, default=HERE / "results" / "pathfinder_sheet.png")
    options = parser.parse_args()
    found = options.run(options)
    if found:
        options.json.write_text(json.dumps({**about(), **found}, indent=1) + "\n", encoding="utf-8")
        print(options.json)


if __name__ == "__main__":
    main()
