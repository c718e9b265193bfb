import json
import subprocess
import sys


def figures(root, *arguments):
    command = [sys.executable, "launch/figures.py", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_means_over_seeds(root, tmp_path):
    for name, values in {"K=4": (0.2, 0.3, 0.4), "K=1": (0.1, 0.1, 0.1)}.items():
        for seed, value in enumerate(values):
            folder = tmp_path / f"{name}-{seed}" / "results"
            folder.mkdir(parents=True)
            (folder / "held.json").write_text(json.dumps({"metrics": {"R@1": value}}))
    done = figures(root, "seeds", "--workdirs", *tmp_path.iterdir(), "--evaluators", "held", "--metrics", "R@1")
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in done.stdout.splitlines()]
    assert rows[0] == ["run", "evaluated on", "seeds", "R@1"]
    assert rows[2:] == [
        ["K=1", "held", "3", "0.100 ± 0.000 (0.100 to 0.100)"],
        ["K=4", "held", "3", "0.300 ± 0.100 (0.200 to 0.400)"],
    ]


def test_a_run_without_results_is_one_line(root, tmp_path):
    done = figures(root, "seeds", "--workdirs", tmp_path / "a-1", "--evaluators", "held", "--metrics", "R@1")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("a-1/results/held.json: no such file; run launch/evaluate.py first")
    assert len(done.stderr.splitlines()) == 1
