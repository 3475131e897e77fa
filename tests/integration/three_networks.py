"""Three networks, two seeds each, on CamVid: trained, scored and compared on one page, by the jobs that users start.

    python -m tests.integration.three_networks --root ../shared/data/camvid --output three --epochs 4

One training is done twice, with one seed: the comparison must find no difference between the two. Takes some 20 minutes
on two cores with 4 epochs; started again it continues. Ends with exit code 1 where the comparison is not as it must be.
"""

import csv
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {"enet": "camvid.small_enet_encoder", "espnet": "camvid.small_espnet_c", "dfanet": "camvid.small_dfanet_b"}
SEEDS = (1, 2)
TWICE = ("espnet", 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Where CamVid is, and how long to train."""

    root: str
    """CamVid in SegNet's layout."""
    output: str
    """Folder for everything."""
    epochs: int = 4
    """Of each training."""
    workers: int = 1
    """Of each job."""


def main(config: Config) -> None:
    """Run every job, then look at what the comparison says."""
    output = Path(config.output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    store = ("--tracking-uri", f"sqlite:///{output}/mlflow.db", "--experiment", "three")
    data, workers = str(output / "data"), ("--workers", str(config.workers))
    job("prepare", "camvid", "--root", str(Path(config.root).resolve()), "--output", data, *workers)
    trainings = [(network, seed, "") for network in NETWORKS for seed in SEEDS] + [(*TWICE, "-again")]
    for network, seed, suffix in trainings:
        name = f"{network}-seed{seed}{suffix}"
        runs = ("--output", str(output / "runs"), "--name", name, "--weights", "none", "--seed", str(seed))
        length = ("--epochs", str(config.epochs), "--validate-every", str(config.epochs))
        job("train", NETWORKS[network], "--data", data, *runs, *length, *workers, *store)
        model, scores = output / "runs" / name / "model", output / "scores" / name
        job("evaluate", "--model", str(model), "--data", data, "--output", str(scores), *workers, *store)
    once = f"{TWICE[0]}-seed{TWICE[1]}"
    pages = {
        "all": ("--filter", "params.weights = 'none'", "--table", "dfanet", "--data", data),
        "twice": ("--runs", once, f"{once}-again", "--data", data),
    }
    for page, flags in pages.items():
        job("compare", "--output", str(output / page), *flags, *store)
    check(output)


def check(output: Path) -> None:
    """Hold the two comparisons to what must stand in them."""
    rows = read_csv(output / "all" / "rows.csv")
    seeds = {row["row"]: int(row["num_runs"]) for row in rows}
    assert sorted(seeds.values()) == [1, 2, 2, 2], f"three networks with two seeds and one repetition: {seeds}"
    assert all(row["mean_iou_deviation"] for row in rows if row["num_runs"] == "2")
    (pair,) = read_csv(output / "twice" / "pairs.csv")
    assert (pair["verdict"], float(pair["difference"]), float(pair["p"])) == ("no difference", 0.0, 1.0), pair
    assert not read_csv(output / "twice" / "images_moved.csv")
    for row in rows:
        print(f"{row['row']}: mIoU {100 * float(row['mean_iou']):.2f} %, {row['num_runs']} run(s)")
    for each in read_csv(output / "all" / "pairs.csv"):
        numbers = [f"{100 * float(each[name]):.2f}" for name in ("difference", "difference_low", "difference_high")]
        print(f"{each['better']} minus {each['other']}: {' '.join(numbers)}, p {each['adjusted_p']}: {each['verdict']}")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(path.read_text())))


def job(name: str, *flags: str) -> None:
    """One job in a process of its own, its command and its seconds said."""
    print(f"python jobs/{name}.py {' '.join(flags)}", flush=True)
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags], cwd=ROOT, env=environment, check=True)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
