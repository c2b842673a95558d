"""The registry, the command line, the records: every case at a tiny size."""

import ast
import errno
import json
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

import fractal_lib.benchmark
from fractal_lib.attention import PATTERNS
from fractal_lib.benchmark import (
    CASES,
    burgers,
    case,
    choices,
    co2_rivals,
    fill_holes,
    forecast_rivals,
    forecast_sde,
    glucose_rivals,
    ladder_ablation,
    long_rivals,
    masks,
    mocap_rivals,
    mocap_task,
    mqar,
    trained_keys,
)
from fractal_lib.benchmark.__main__ import main, options_of, script
from fractal_lib.benchmark.attentions import FAR, WAYS
from fractal_lib.benchmark.methods import FORMS
from fractal_lib.benchmark.record import identity, load, names, record, rows
from fractal_lib.benchmark.tasks import ou_task
from fractal_lib.data.mocap import Mocap
from fractal_lib.posterior.run import Run
from fractal_lib.self_attention import masks as library_masks

FOLDER = Path(fractal_lib.benchmark.__file__).parent
MACHINE = {"device", "cores", "threads", "date", "load_average", "load_average_after", "versions"}
TINY = {
    "context-attention": "--sizes 5 64 --batch 3 --hidden 4 --seconds 0.003 --queries 2",
    "heads": "--sizes 5 --batch 3 --hidden 4 --seconds 0.003 --queries 2",
    "self-attention": "--sizes 30 --heads 2 --width 8 --near 8 --cells 2 --seconds 0.003 "
    "--no-memory",
    "masks": "--sizes 300 --heads 1 --width 16 --seconds 0.001",
    "hilbert-speed": "--cells 50 --order 4 --seconds 0.003",
    "latent-sde": "--task ou --steps 2",
    "posterior-cost": "--sizes 9 --batch 2 --hidden 4 --seconds 0.003",
    "pyramid-cost": "--sizes 1 9 --batch 2 --hidden 4 --seconds 0.003",
    "ladder-ablation": "--sizes 41 --seeds 0 1 --steps 1 --only",
    "co2-rivals": "--weeks 150 --seeds 0 --years 1985",
    "long-rivals": "--n 150 --no-isolated",
    "long": "--rows 400 --steps 2 --num-times 4 --views 1",
    "glucose-rivals": "--readings 1500 --seeds 0",
    "mocap-rivals": "--path mocap35.mat",
    "mocap": "--path mocap35.mat --seeds 0 1 --samples 3",
    "forecast-rivals": "--origins 3 --tasks co2",
    "trained-keys": "--places convolution --length 40 --near 4 --cells 2 --centroids 3 --texts 1 "
    "--steps 1 1 1",
    "key-kinds": "--n 60 --width 8 --near 4 --cells 2 --centroids 3 --seeds 0",
    "burgers": "--n 16 --train 5 --test 2 --width 8 --layers 1 --near 4 --cells 2 --steps 1 "
    "--batch 2 --seeds 0",
    "fill-holes": "--seeds 0 --steps 2 --n 450 --series lorenz",
    "choices": "--sizes 40",
    "needle": "--sizes 60 --width 8 --near 4 --cells 2 --seeds 0",
    "mqar": "--lengths 16 --pairs 2 --vocabulary 16 --width 8 --near 4 --cells 2 --steps 1 "
    "--tokens 32 --seeds 0",
}
LATENT = "latent-sde --task ou --steps 9 --quiet"
REQUIRED = {"latent-sde": ["--task", "ou"]}
REQUIRED |= {name: ["--path", "mocap35.mat"] for name in ("mocap", "mocap-rivals")}
NUMBERS = {  # of rows, or of runs
    "context-attention": 2 * (6 + len(PATTERNS) + len(FORMS)),
    "heads": 3 * (2 + len(PATTERNS)),
    "self-attention": 2 * (2 + len(FAR)) * 2,
    "masks": 1,
    "hilbert-speed": 3,
    "latent-sde": 1,
    "posterior-cost": 4,
    "pyramid-cost": 2 * 4,
    "ladder-ablation": 2,
    "co2-rivals": len(co2_rivals.RIVALS),
    "long-rivals": len(long_rivals.RIVALS),
    "long": 1,
    "glucose-rivals": len(glucose_rivals.RIVALS),
    "mocap-rivals": len(mocap_rivals.RIVALS),
    "mocap": 2 * len(mocap_task.MODELS),
    "forecast-rivals": len(forecast_rivals.RIVALS),
    "trained-keys": 8 * len(WAYS),
    "key-kinds": 3 * len(WAYS),
    "needle": len(FAR) + 1,
    "burgers": len(burgers.ATTENTIONS),
    "mqar": len(mqar.ATTENTIONS),
    "fill-holes": 2 * len(fill_holes.METHODS),
    "choices": 4 + 25 * len(choices.KERNELS),
}


@pytest.fixture
def short(monkeypatch):
    """What no option makes small: the number of compiled masks, the text, 2048 Lorenz paths, the
    training of forecasts; and the file of motion capture.
    """
    dragon = {"dragon": masks.masks(300)["dragon"]}
    monkeypatch.setattr(masks, "masks", lambda n, device: dragon)
    monkeypatch.setattr(trained_keys, "docstrings", lambda: bytes(range(256)) * 8)
    monkeypatch.setattr(forecast_sde, "STEPS", 5)
    monkeypatch.setattr(ladder_ablation, "lorenz_task", lambda n, noise: ou_task())
    walks = np.random.default_rng(0).standard_normal((9, 20, 5)).cumsum(1)
    for module in (mocap_rivals, mocap_task):
        monkeypatch.setattr(module, "mocap", lambda path: Mocap(walks[:4], walks[4:6], walks[6:]))


def test_every_case_is_tested():
    assert set(TINY) == set(NUMBERS) == set(CASES)


@pytest.mark.filterwarnings("default")  # the compiler's own deprecations are not ours
@pytest.mark.parametrize("name", CASES)
def test_every_case_makes_a_record(name, short, tmp_path, capsys):
    file = tmp_path / "new" / "run.json"
    settings = TINY[name].split()
    if name == "ladder-ablation":
        settings += ["splines on 1 level", "means on all levels"]
    main(["run", name, *settings, "--quiet", "--json", str(file)])
    run = json.loads(file.read_text())
    assert set(run) >= MACHINE | {"settings"}
    assert run["device"] and run["versions"]["torch"] == torch.__version__
    assert set(run["versions"]) >= set(CASES[name].packages)
    assert datetime.fromisoformat(run["date"]).utcoffset().total_seconds() == 0
    assert len(rows(run)) == NUMBERS[name]
    assert len({json.dumps(identity(row)) for row in rows(run)}) == NUMBERS[name]
    told = capsys.readouterr().out
    assert f"written to {file}" in told and len(told.splitlines()) > 1
    assert [f.name for f in file.parent.iterdir()] == ["run.json"]
    if names(CASES[name].records):
        assert_keeps_the_form(run, load(names(CASES[name].records)[0]))
    if name == "masks":  # the first queries reach none of the last 44 creases
        assert run["rows"][0]["skipped"] == pytest.approx(1 / 9)


def assert_keeps_the_form(new, old):
    """A page that reads the recorded run can read a new one: no key is lost."""
    assert set(new) >= set(old)
    if "rows" in old or "runs" in old:
        then, now = by_identity(old), by_identity(new)
        both = then.keys() & now.keys()
        assert both, "no row of the record is made any more"
        for row in both:  # rows that were kept from an older record have its date and device
            if "pip install" not in now[row].get("note", ""):  # else its package is not here
                assert set(now[row]) >= set(then[row]) - {"date", "device"}


def by_identity(run):
    """At another n the same rows are made."""
    return {json.dumps({k: v for k, v in identity(r).items() if k != "n"}): r for r in rows(run)}


def test_list_names_every_case_and_every_record_belongs_to_one(capsys):
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CASES)
    assert all(len(line.split()) > 5 for line in lines)
    assert len(names()) > 20
    for name in names():
        run = load(name)
        assert run["versions"] and run["date"] and rows(run)
        assert "NaN" not in json.dumps(run), name
        assert sum(one.makes(name) for one in CASES.values()) == 1, name
    for one in CASES.values():
        assert names(one.records) or one.name in ("masks", "pyramid-cost"), one.name


def test_names_that_pages_and_records_use_are_kept():
    """A row of an old record can be compared with one of today."""
    from fractal_lib.benchmark.harness import draw
    from fractal_lib.benchmark.heads import heads
    from fractal_lib.benchmark.methods import methods

    made = {m.name for m in methods(*draw(9, 1, 2, "cpu", 1))}
    assert {row["method"] for row in load("cpu-attention")["rows"]} <= made
    assert {row["head"] for row in load("heads-cpu")["rows"]} <= set(heads(4))


def test_every_pattern_is_measured_and_every_mask():
    from fractal_lib.benchmark import methods as ways
    from fractal_lib.benchmark.harness import draw
    from fractal_lib.benchmark.heads import LABELS, heads

    made = [m.name for m in ways.methods(*draw(9, 1, 2, "cpu", 1))]
    assert {ways.LABELS.get(name, name) for name in PATTERNS} <= set(made)
    assert {LABELS.get(name, name) for name in PATTERNS} <= set(heads(4))
    assert ways.LABELS.keys() | LABELS.keys() | ways.BOUNDS.keys() <= PATTERNS.keys()
    there = {f.removesuffix("_mask_mod") for f in vars(library_masks) if f.endswith("_mask_mod")}
    there = {name for name in there if not name.startswith("_")}
    assert {masks.LABELS.get(name, name) for name in there} | {"all"} == set(masks.masks(100))


def test_a_pattern_that_is_entered_is_measured(monkeypatch):
    from fractal_lib.attention import WindowAttention
    from fractal_lib.benchmark.harness import draw
    from fractal_lib.benchmark.heads import heads
    from fractal_lib.benchmark.methods import methods

    monkeypatch.setitem(PATTERNS, "new", WindowAttention)
    assert "new" in {m.name for m in methods(*draw(9, 1, 2, "cpu", 1))}
    assert "new" in heads(4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "required"),
        ("nothing", "invalid choice"),
        ("run", "expected a case, one of context-attention"),
        ("run nothing", "got 'nothing'"),
        ("run heads --nothing 3", "unknown setting --nothing; there are --add, --batch"),
        ("run heads --size 3", "unknown setting --size"),
        ("run heads --sizes many", "invalid int value: 'many'"),
        ("run heads --sizes 0", "must be positive, got sizes = 0"),
        ("run heads --threads 0", "must be positive, got threads = 0"),
        ("run heads --device tape", "device must be cpu or cuda, got 'tape'"),
        ("run posterior-cost --names nothing", "invalid choice: 'nothing'"),
        ("run latent-sde", "--task"),
        ("run latent-sde --task nothing", "invalid choice: 'nothing'"),
        ("run latent-sde --task ou --posterior nothing", "invalid choice: 'nothing'"),
        ("run latent-sde --task ou --n 50", "the task 'ou' has no setting 'n'"),
        ("run latent-sde --task ou --steps 0", "steps"),
        ("run latent-sde --task ou --levels 0", "levels"),
        ("run latent-sde --task ou --device cuda:99", "CUDA device"),
        ("list heads", "list takes no heads"),
        ("compare nothing.json nothing.json", "cannot read nothing.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said
    assert said.startswith("python -m fractal_lib.benchmark") and said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "device" in case.settings]
)
def test_a_missing_device_is_told_before_anything_runs(name, monkeypatch, capsys):
    monkeypatch.setattr(CASES[name].__class__, "payloads", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stop:
        main(["run", name, "--device", "cuda", *(["--task", "ou"] if name == "latent-sde" else [])])
    assert stop.value.code == 2
    sentence = "PyTorch finds no CUDA device on this machine: use --device cpu"
    assert capsys.readouterr().err.strip().endswith(sentence)


@pytest.mark.parametrize("place", ["", "file.txt/run.json"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    place, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr(CASES["heads"].__class__, "payloads", lambda *a, **k: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as stop:
        main(["run", "heads", "--json", str(tmp_path / place)])
    assert stop.value.code == 2 and "cannot write to" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["file.txt"]


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_run(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr(Run, "step", lambda self: pytest.fail("it ran"))
    place = str(tmp_path / "file.txt" / "run.pt")
    with pytest.raises(SystemExit) as stop:
        main(["run", "latent-sde", "--task", "ou", "--checkpoint", place, "--quiet"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"cannot write {place}" in said and said.count("\n") == 1


def test_a_disk_that_is_full_leaves_the_record_before(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    record({"rows": [1]}, file)

    def fill(self, text):
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match=r"cannot write to .*run.json: No space left on device"):
        record({"rows": [2]}, file)
    assert json.loads(file.read_text())["rows"] == [1]
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


def test_ctrl_c_is_a_sentence_and_its_own_exit_code(tmp_path, monkeypatch, capsys):
    step, file = Run.step, tmp_path / "run.pt"

    def press(self):
        step(self)
        if self.done == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "step", press)
    monkeypatch.setattr(sys, "argv", ["", "run", *LATENT.split(), "--checkpoint", str(file)])
    with pytest.raises(SystemExit) as stop:
        script()
    assert stop.value.code == 130 and file.exists()
    said = "stopped after 3 of 9 steps; {} holds them, and the same call goes on from there\n"
    assert capsys.readouterr().err.endswith(said.format(file))


def test_a_run_can_be_added_to_a_record(short, tmp_path, capsys):
    file = tmp_path / "run.json"
    common = ["run", "long-rivals", "--n", "150", "--no-isolated", "--quiet", "--json", str(file)]
    main([*common, "--only", "linear interpolation", "the true equations"])
    first = json.loads(file.read_text())
    main([*common, "--only", "the true equations", "--add"])
    second = json.loads(file.read_text())
    assert [r["rival"] for r in second["runs"]] == [r["rival"] for r in first["runs"]]
    assert second["runs"][0] == {k: first[k] for k in ("date", "device")} | first["runs"][0]
    assert "date" not in second["runs"][1]
    common[3] = "160"
    with pytest.raises(SystemExit):
        main([*common, "--only", "the true equations", "--add"])
    assert "was made with n = 150, this run has n = 160" in capsys.readouterr().err
    assert json.loads(file.read_text()) == second


def test_what_is_done_is_recorded_on_the_way(short, tmp_path, monkeypatch, capsys):
    file, train = tmp_path / "run.json", mqar._train

    def fail_at_the_second(*arguments):
        if file.exists():
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(mqar, "_train", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        main(["run", "mqar", *TINY["mqar"].split(), "--quiet", "--json", str(file)])
    assert len(json.loads(file.read_text())["runs"]) == 1


def test_options_follow_the_signature():
    for one in CASES.values():
        required = REQUIRED.get(one.name, [])
        given = vars(options_of(one).parse_args(required))
        assert given.keys() - {"json", "add", "quiet"} == one.settings.keys() - {"progress"}
        assert {"progress"} <= one.settings.keys(), "--quiet must do something"
        told = options_of(one).format_help()
        for name in one.settings.keys() - {"progress"}:
            option = told.split(f"\n  --{name.replace('_', '-')}")[1].split("\n  --")[0]
            assert len(option.split("(default")[0].split()) > 2, f"{one.name}: {name} is not told"
    given = options_of(CASES["context-attention"]).parse_args("--sizes 3 4 --compile".split())
    assert given.sizes == [3, 4] and given.compile is True and given.seconds == 1.0
    given = options_of(CASES["latent-sde"]).parse_args("--task ou --checkpoint a/b".split())
    assert given.checkpoint == Path("a/b") and given.steps is None
    assert not options_of(CASES["self-attention"]).parse_args(["--no-memory"]).memory


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="there is a case 'heads' already"):
        case("heads")(list)


def test_a_case_is_refused_what_it_does_not_know():
    with pytest.raises(
        ValueError, match="only must be one of mean of the values, window, .*, got 'x'"
    ):
        CASES["key-kinds"].run(only=["x"])


def test_threads_are_given_back():
    before = torch.get_num_threads()
    tiny = dict(sizes=[5], batch=1, hidden=2, seconds=1e-3, queries=1, progress=False)
    CASES["context-attention"].run(threads=before + 1, **tiny)
    assert torch.get_num_threads() == before


def test_one_writer_one_timer_one_memory_meter():
    """No module but record writes JSON, none but timer reads a clock, none but peak the memory."""
    only = {
        "record.py": {"json.dumps"},
        "choice_form.py": {"json.dumps"},  # into a page, and no record
        "timer.py": {"torch.utils.benchmark", "time"},
        "peak.py": {"resource"},
    }
    for file in FOLDER.glob("*.py"):
        tree = ast.parse(file.read_text())
        used = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used.add(f"{node.value.id}.{node.attr}")
        for name in set.union(*only.values()) | {"json.dump"}:
            assert name not in used or name in only.get(file.name, ()), (file.name, name)
    assert not [f for f in FOLDER.glob("*.py") if len(f.read_text().splitlines()) > 300]


def test_the_library_does_not_import_it():
    code = "import sys, fractal_lib; sys.exit('fractal_lib.benchmark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_imports_without_the_packages_of_its_cases():
    """A page in Colab reads the records with torch and numpy alone."""
    missing = ["statsmodels", "sklearn", "scipy", "pandas", "matplotlib", "hilbertcurve", "hilbert"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    code += "from fractal_lib.benchmark.record import load; assert load('hilbert-cpu')['rows']"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_speed_runs_what_measures_time_alone_and_nothing_else(short, tmp_path, monkeypatch, capsys):
    timed = {name: one for name, one in CASES.items() if one.speed is not None}
    assert {"context-attention", "heads", "self-attention", "posterior-cost"} <= set(timed)
    assert not {"latent-sde", "co2-rivals", "fill-holes", "needle"} & set(timed)
    ran = {}

    def run(self, **settings):
        ran[self.name] = settings
        if self.name == "masks":
            raise ImportError("optional needs the package nothing")
        return {"rows": []}

    monkeypatch.setattr(CASES["heads"].__class__, "run", run)
    main(["speed", "--quiet", "--folder", str(tmp_path / "new")])
    assert {name: one.speed | {"progress": False} for name, one in timed.items()} == ran
    written = {f.stem for f in (tmp_path / "new").iterdir()}
    assert written == set(timed) - {"masks"}
    assert "left out: optional needs the package nothing" in capsys.readouterr().out
    for name, settings in ran.items():  # what it is given are settings of it
        assert set(settings) <= set(CASES[name].settings)
