"""Places that cannot be used, in every command: one line and exit 2, and never a wait."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from training_process import TINY, iterations, train

from trpo_fast import TRPO, cli
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.files import PathError

pytestmark = pytest.mark.filterwarnings("default:passing over a checkpoint")

LONG = "n" * 300
NOBODY = 65534


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates, with two rolling checkpoints and a best one."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = ("--save-every", "1", "--eval-every", "64", "--eval-episodes", "1")
    assert train(run, 128, *options) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def commands(run: str | Path, out: str | Path) -> dict[str, list[str]]:
    training = ["train", "CartPole-v1", *TINY, "--quiet", "--total-steps", "192", "--run-dir"]
    return {
        "train": [*training, str(run)],
        "resume": [*training, str(run), "--resume"],
        "eval": ["eval", str(run), "--episodes", "1"],
        "best": ["eval", str(run), "--episodes", "1", "--best"],
        "plot": ["plot", str(run), "--out", str(out)],
    }


NAMES = list(commands("", ""))


def assert_refused(capsys, arguments: list[str], words: str) -> None:
    capsys.readouterr()
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    complaints = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(complaints) == 1, err
    assert complaints[0].startswith("error: ")
    assert words in complaints[0]
    assert "Traceback" not in out + err


@contextmanager
def as_nobody(path: Path) -> Iterator[None]:
    """Without root's right to read and write everything."""
    if os.geteuid() == 0:
        for entry in (path, *path.rglob("*")):
            os.chown(entry, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def open_run(run: Path) -> Iterator[Path]:
    """A run where a user without rights gets at it: pytest's own directories keep others out."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield Path(shutil.copytree(run, root / "run"))
    for entry in (root, *root.rglob("*")):
        entry.chmod(0o755)
    shutil.rmtree(root)


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_name_is_refused(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, commands("", "x.png")[name], "is empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reliability("odd_places")
def test_an_empty_name_of_an_output_is_refused(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, ["plot", str(run), "--out", ""], "is empty")
    assert_refused(capsys, ["eval", str(run), "--video", ""], "is empty")
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.reliability("odd_places")
def test_an_empty_name_is_refused_in_python(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newest = RunDirectory(run).rolling()[-1]
    for run_dir in ("", "\0"):
        with pytest.raises(PathError, match="the run directory"):
            TRPO("CartPole-v1", num_envs=1, run_dir=run_dir)
        with pytest.raises(PathError, match="the run directory"):
            TRPO.load(newest, run_dir=run_dir)
    with TRPO.load(newest) as agent:
        for action in (agent.save, TRPO.load, lambda path: agent.record(1, path)):
            with pytest.raises(PathError, match="is empty"):
                action("")
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_too_long_is_refused(capsys, tmp_path, name):
    assert_refused(capsys, commands(tmp_path / LONG, tmp_path / "x.png")[name], "name too long")


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("name", NAMES)
def test_links_in_a_ring_are_refused(capsys, tmp_path, name):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for place in (tmp_path / "a", tmp_path / "a" / "run"):
        assert_refused(capsys, commands(place, tmp_path / "x.png")[name], "links")


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "") for name in NAMES),
        *((name, "checkpoints") for name in NAMES if name != "plot"),
        *((name, "progress.csv") for name in ("train", "resume", "plot")),
    ],
)
def test_without_permission_nothing_is_begun(capsys, open_run, name, part):
    """Neither read nor written, whichever of them the command would do first."""
    with as_nobody(open_run):
        (open_run / part).chmod(0)
        assert_refused(capsys, commands(open_run, open_run.parent / "x.png")[name], "")
    (open_run / part).chmod(0o755)
    if part:
        assert iterations(open_run) == [1, 2]


@pytest.mark.reliability("odd_places")
def test_an_unreadable_directory_of_checkpoints_is_named(capsys, open_run):
    for name in ("train", "resume", "eval"):
        with as_nobody(open_run):
            (open_run / "config.json").unlink(missing_ok=True)
            (open_run / "progress.csv").unlink(missing_ok=True)
            (open_run / "checkpoints").chmod(0)
            assert_refused(capsys, commands(open_run, "")[name], f"cannot read {open_run}")


@pytest.mark.reliability("odd_places")
def test_a_directory_that_cannot_be_written_to_is_refused(capsys, open_run):
    with as_nobody(open_run):
        open_run.chmod(0o555)
        assert_refused(capsys, commands(open_run, open_run / "x.png")["plot"], "cannot write")
        assert_refused(capsys, commands(open_run / "new", "")["train"], "Permission denied")
        (open_run / "checkpoints").chmod(0o555)
        assert_refused(capsys, commands(open_run, "")["resume"], "cannot write to")
        assert_refused(
            capsys, ["eval", str(open_run), "--video", str(open_run / "v")], "no video can"
        )


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
@pytest.mark.parametrize("name", ["train", "resume", "plot"])
def test_a_progress_file_that_is_none_is_refused(capsys, run, tmp_path, name, kind):
    file = run / "progress.csv"
    file.unlink()
    {
        "fifo": lambda: os.mkfifo(file),
        "directory": file.mkdir,
        "device": lambda: file.symlink_to("/dev/zero"),
    }[kind]()
    words = "already holds a run" if name == "train" else "it is not a file"
    assert_refused(capsys, commands(run, tmp_path / "x.png")[name], words)


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("kind", ["fifo", "directory", "ring"])
def test_a_newest_checkpoint_that_is_none_is_passed_over(capsys, run, tmp_path, kind):
    newest = RunDirectory(run).rolling()[-1]
    newest.unlink()
    {
        "fifo": lambda: os.mkfifo(newest),
        "directory": newest.mkdir,
        "ring": lambda: newest.symlink_to(newest),
    }[kind]()
    assert cli.main(commands(run, "")["eval"]) == 0
    assert "passing over" in capsys.readouterr().err
    RunDirectory(run).rolling()[0].unlink()
    for name in ("eval", "resume"):
        assert_refused(capsys, commands(run, "")[name], f"checkpoint {newest} cannot be read")


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_best_checkpoint_or_a_named_file_that_is_none_is_refused(capsys, run, kind):
    best = RunDirectory(run).best_file
    best.unlink()
    os.mkfifo(best) if kind == "fifo" else best.mkdir()
    assert_refused(capsys, commands(run, "")["best"], f"{best} cannot be read")
    assert_refused(capsys, ["eval", str(best)], "holds no checkpoint")


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("out", ["taken/x.png", "directory.png", f"{LONG}.png", "ring/x.png"])
def test_a_picture_where_none_can_be_is_refused(capsys, run, tmp_path, out):
    (tmp_path / "taken").write_text("")
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert_refused(capsys, commands(run, tmp_path / out)["plot"], "cannot write")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.reliability("odd_places")
def test_checkpoints_behind_links_resume(run, tmp_path, capsys):
    """A linked directory of them, and a newest one that is a link itself."""
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    newest = RunDirectory(run).rolling()[-1]
    newest.rename(tmp_path / "newest")
    newest.symlink_to(tmp_path / "newest")
    linked = tmp_path / "linked"
    linked.symlink_to(run)
    assert cli.main(commands(linked, "")["eval"]) == 0
    assert cli.main(commands(linked, "")["resume"]) == 0
    assert iterations(run) == [1, 2, 3]
    assert "going on from" in capsys.readouterr().out
    last = RunDirectory(run).rolling()[-1]
    assert last.resolve().parent == elsewhere
    # By whichever of its names the file is given, it lies in the run directory.
    with TRPO.load(elsewhere / last.name, run_dir=linked) as agent:
        agent.learn(64, progress_bar=False)
    assert iterations(run) == [1, 2, 3, 4]


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("root", ["dangling", "ring", "file", "fifo"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_place_for_runs_that_is_none_is_refused(capsys, tmp_path, monkeypatch, root, resume):
    monkeypatch.chdir(tmp_path)
    {
        "dangling": lambda: Path("runs").symlink_to("nowhere"),
        "ring": lambda: Path("runs").symlink_to("runs"),
        "file": lambda: Path("runs").write_text(""),
        "fifo": lambda: os.mkfifo("runs"),
    }[root]()
    arguments = ["train", "CartPole-v1", *TINY, "--total-steps", "64", *resume]
    assert_refused(capsys, arguments, "cannot create runs")


def test_a_working_directory_that_is_gone_is_no_traceback(capsys, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for name in NAMES:
        assert_refused(capsys, commands("run", "x.png")[name], "")
