"""The parts of the training loop, the typed config, and the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest

from tests.processes import ROOT, environment, run_main, run_python
from train.config import TrainConfig, default_config, from_config_dict, to_config_dict
from train.data import Prefetch, parse_names
from train.monitor import LossGuard, MetricsLog, read_metrics
from train.posttrain import due
from train.run_directory import BusyRunError, check_run, hold_run, open_run

MODE = {"resume": False, "overwrite": False}


def test_prefetch_keeps_order_and_stays_at_most_depth_ahead():
    made = []

    def source():
        for i in range(20):
            made.append(i)
            yield i

    placed = []

    def place(number):
        placed.append((number, threading.current_thread()))
        return number

    batches = Prefetch(source(), place, depth=3)
    time.sleep(0.3)
    assert made == [0, 1, 2] and not placed
    batches.advance()
    batches.advance()  # it is placed already
    assert [number for number, _ in placed] == [0]
    assert list(batches) == list(range(20))
    assert placed == [(i, threading.current_thread()) for i in range(20)]
    batches.advance()  # there is nothing left
    with pytest.raises(StopIteration):
        next(batches)  # an exhausted iterator stays exhausted


def test_prefetch_raises_the_sources_error_in_its_place():
    def source():
        yield 1
        raise ValueError("item 2 is bad")

    batches = Prefetch(source(), str)
    assert next(batches) == "1"
    time.sleep(0.1)
    batches.advance()  # which is no place for it
    for _ in range(2):
        with pytest.raises(ValueError, match="item 2 is bad"):
            next(batches)


def test_prefetch_ends_its_thread():
    def endless():
        while True:
            yield 0

    batches = Prefetch(endless(), str)
    next(batches)
    batches.close()
    assert not any(thread.name == "prefetch" and thread.is_alive() for thread in threading.enumerate())


def test_the_log_drops_what_comes_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed here
    log = MetricsLog(tmp_path, last_step=2)
    assert log.last == {"step": 2, "loss": 1.0}
    log.write(3, {"loss": 9.0})
    log.write(3, {"eval/ndcg": 0.5})  # added to its line
    log.close()
    assert log.last == {"step": 3, "loss": 9.0, "eval/ndcg": 0.5}
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0, "eval/ndcg": 0.5},
    ]


def test_the_guard_reads_one_step_late():
    guard = LossGuard()
    guard.push(1, ["a"], jnp.float32(2.0), jnp.float32(1.0))
    guard.push(2, ["b", "c"], jnp.float32(jnp.inf), jnp.float32(jnp.nan))
    assert guard.last == 2.0
    with pytest.raises(FloatingPointError, match="loss is inf at step 2, on the examples b, c"):
        guard.push(3, ["d"], jnp.float32(1.0), jnp.float32(1.0))
    guard = LossGuard()
    guard.push(1, ["a"], jnp.float32(2.0), jnp.float32(jnp.inf))
    with pytest.raises(FloatingPointError, match="gradient's norm is inf at step 1, on the examples a"):
        guard.flush()


def test_some_losses_in_a_row_may_be_left_out(capsys):
    guard = LossGuard(2)
    bad, good = jnp.float32(jnp.nan), jnp.float32(1.0)
    for step, loss in enumerate([bad, bad, good, bad, bad, bad]):
        guard.push(step, ["x"], loss, good)
    with pytest.raises(FloatingPointError, match="loss is nan at step 5"):
        guard.flush()
    assert capsys.readouterr().out.count("the update is left out") == 4


def test_due():
    assert [step for step in range(1, 8) if due(step, 3, 7)] == [3, 6, 7]
    assert [step for step in range(1, 8) if due(step, 0, 7)] == [7]


def test_a_run_directory_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for function in (lambda: check_run(tmp_path, **MODE), lambda: open_run(tmp_path, {}, **MODE)):
        with pytest.raises(FileExistsError, match=r"not empty: --config\.resume=True .*--config\.overwrite=True"):
            function()
    with pytest.raises(ValueError, match=r"config\.output is empty"):
        check_run("", **MODE)


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    open_run(tmp_path, {"seed": 1}, resume=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes.txt"]


HOLDER = """
import sys
from train.run_directory import hold_run
with hold_run(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def test_one_process_writes_to_a_run_directory(tmp_path):
    """The other is told whom to wait for, and a process that was killed holds nothing."""
    command, pipes = (
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
    )
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as process:
        process.stdout.readline()
        name = rf"is written to by process {process.pid} \(-c\) on {socket.gethostname()} since \d+.*: wait for it"
        for resume in (False, True):
            with pytest.raises(BusyRunError, match=name):
                check_run(tmp_path, resume=resume, overwrite=not resume)
        with pytest.raises(BusyRunError, match=name), hold_run(tmp_path):
            pass
        process.kill()
        process.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    with hold_run(tmp_path):
        open_run(tmp_path, {}, **MODE)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_resuming_keeps_what_changed(tmp_path, capsys):
    config = {"seed": 1, "resume": False, "optimizer": {"learning_rate": 0.1}}
    open_run(tmp_path / "new", config, **MODE)
    changed = {"seed": 1, "resume": True, "optimizer": {"learning_rate": 0.2}}
    open_run(tmp_path / "new", changed, resume=True, overwrite=False)
    line = "config differs from the run's last start: optimizer.learning_rate: 0.1 -> 0.2\n"
    assert capsys.readouterr().out == line
    for seed in (1, 2, 2):  # without a change, with one, and as the last start
        open_run(tmp_path / "new", changed | {"seed": seed}, resume=True, overwrite=False)
    kept = json.loads((tmp_path / "new" / "config.json").read_text())
    starts = [{"optimizer.learning_rate": [0.1, 0.2]}, {"seed": [1, 2]}]
    assert kept == changed | {"seed": 2, "changed_on_resuming": starts}


def test_config_round_trip():
    config = default_config()
    config.data.query_length = 64
    config.checkpoint.best_metric = "eval/ndcg@5"
    config.optimizer.learning_rate = 1  # an int where a float is expected
    typed = from_config_dict(config)
    assert (typed.data.query_length, typed.checkpoint.best_metric) == (64, "eval/ndcg@5")
    assert type(typed.optimizer.learning_rate) is float
    assert from_config_dict(to_config_dict(typed)) == typed
    assert from_config_dict(default_config()) == TrainConfig()


def test_unknown_keys_are_refused_with_the_nearest_known():
    with pytest.raises(ValueError, match=r"'optimizer\.lerning_rate': did you mean 'optimizer\.learning_rate'\?"):
        from_config_dict({"optimizer": {"lerning_rate": 1.0}})
    with pytest.raises(ValueError, match="unknown config key 'zzz': known: model, head, .*output"):
        from_config_dict({"zzz": 1})
    with pytest.raises(AttributeError, match="learning_rate"):
        default_config().optimizer.lerning_rate = 1.0


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"batch_size": 1}, "batch_size is 1: a contrastive loss needs at least 2"),
        ({"trainable": "lora+full"}, r"choose one of adapter, lora, full, adapter\+lora, adapter\+full"),
        ({"dtype": "float16"}, "choose one of auto, float32, bfloat16"),
        ({"loss": {"objective": "both"}}, "choose one of pooled, late, hybrid"),
        ({"loss": {"objective": "pooled"}}, "leaves the adapter of trainable = 'adapter' untrained"),
        ({"loss": {"temperature": 0.0}}, r"loss\.temperature is 0\.0: it must be positive"),
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"chunk_size": 0}, "must be positive, or None"),
        ({"data": {"max_skipped": -1}}, r"data\.max_skipped is -1: it must not be negative"),
        ({"eval": {"samples": -1}}, r"eval\.samples is -1: it must not be negative"),
        ({"eval": {"validation_documents": 1}}, r"validation_documents is 1: a search needs at least 2"),
        ({"log": {"peak_tflops": 0.0}}, r"log\.peak_tflops is 0\.0: it must be positive"),
        ({"weights": "("}, "weights '\\(' is not a regular expression"),
        ({"lora": {"r": 0}}, "both must be positive"),
    ],
)
def test_values_out_of_range(values, error):
    with pytest.raises(ValueError, match=error):
        from_config_dict(values)


def test_values_of_another_type():
    with pytest.raises(TypeError, match="'batch_size' is '8': expected int"):
        from_config_dict({"batch_size": "8"})
    with pytest.raises(TypeError, match=r"'data\.query_length' is 1\.5: expected int or None"):
        from_config_dict({"data": {"query_length": 1.5}})


def test_the_papers_configs_hold_its_values():
    from configs import vidore, vidore_8b

    for module, name in ((vidore, "2B"), (vidore_8b, "8B")):
        config = from_config_dict(module.get_config())
        assert config.model == f"Qwen/Qwen3-VL-Embedding-{name}"
        assert (config.trainable, config.loss.objective, config.loss.temperature) == ("adapter", "late", 0.03)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_ratio) == (1e-3, 0.01, 0.03)
        assert (optimizer.clip_norm, optimizer.schedule, config.epochs) == (1.0, "cosine", 2.0)
        assert (config.adapter.layers, config.adapter.dim, config.data.negatives) == ("-1", None, 0)
        assert config.batch_size == 8 * 64

        reference = from_config_dict(module.get_config("reference"))
        loss = dataclasses.replace(config.loss, bank="local", mask_false_negatives=False)
        optimizer = dataclasses.replace(optimizer, decay_norms=True)
        data = dataclasses.replace(config.data, clean_queries="placeholders")
        changed = dataclasses.replace(config, loss=loss, optimizer=optimizer, data=data, output=reference.output)
        assert reference == changed and reference.output == f"{config.output}-reference"
        with pytest.raises(ValueError, match="the argument is 'x': give none, or reference"):
            module.get_config("x")


@pytest.mark.parametrize("arg", ["hybrid", "late", "pooled", "tiny,hybrid", "tiny,late"])
def test_the_papers_lora_config_holds_its_values(arg):
    from configs import lora_visdoc

    config, objective = from_config_dict(lora_visdoc.get_config(arg)), arg.removeprefix("tiny,")
    loss, optimizer = config.loss, config.optimizer
    assert (config.trainable, loss.objective, loss.temperature) == ("lora", objective, 0.05)
    assert loss.late_temperature is None  # the same for both
    weights = (loss.pooled_weight, loss.late_weight, loss.hybrid_loss_weight)
    assert (*weights, loss.pooled_loss_weight, loss.late_loss_weight) == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert (optimizer.schedule, optimizer.warmup_ratio, optimizer.weight_decay) == ("cosine", 0.03, 0.0)
    assert re.search(config.lora.modules, "language_model.layers.9.mlp.down_proj")
    assert not re.search(config.lora.modules, "visual.blocks.0.attn.proj")
    if arg == objective:
        assert (config.lora.r, config.lora.alpha, optimizer.learning_rate) == (128, 256.0, 1e-4)
        assert (config.epochs, config.steps, config.batch_size, config.remat) == (1.0, None, 8 * 64, None)
        assert config.data.max_length == 1024 and config.data.max_pixels // 32**2 < 1000
    assert (config.model == "tiny") == (arg != objective)


@pytest.mark.parametrize("objective", ["hybrid", "late", "pooled"])
def test_the_lora_reference_is_the_papers(objective):
    from configs import lora_visdoc

    ours, config = (from_config_dict(lora_visdoc.get_config(f"{x}{objective}")) for x in ("", "reference,"))
    assert (config.model, config.head) == ("Qwen/Qwen3-VL-2B-Instruct", "lamra_qwen3_vl")
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (128, 256.0, 0.05)
    assert (config.loss.tokens, config.loss.bank, config.loss.mask_false_negatives) == ("all", "global", False)
    assert (config.data.min_pixels, config.data.max_pixels, config.data.max_length) == (200_704, 802_816, 1024)
    assert config.data.clean_queries == "sentence"
    assert (config.optimizer, config.batch_size, config.epochs) == (ours.optimizer, ours.batch_size, 1.0)
    assert dataclasses.replace(config.loss, tokens="kept", mask_false_negatives=True) == ours.loss
    for name in ("language_model.layers.9.mlp.down_proj", "visual.blocks.0.attn.qkv", "visual.merger.linear_fc1"):
        assert re.search(config.lora.modules, name)
    assert not re.search(config.lora.modules, "visual.patch_embed.proj")
    assert lora_visdoc.get_config("reference") == lora_visdoc.get_config("reference,hybrid")


@pytest.mark.parametrize("arg", ["", "tiny"])
def test_the_mixture_s_config_is_the_lora_run_on_other_data(arg):
    from configs import lora_visdoc, visdoc_mixture

    config = from_config_dict(visdoc_mixture.get_config(arg))
    single = from_config_dict(lora_visdoc.get_config("tiny,hybrid" if arg else "hybrid"))
    assert set(parse_names(config.data.name).values()) == {None}  # shares by size
    data = dataclasses.replace(config.data, name=single.data.name, negatives=0)
    assert dataclasses.replace(config, output=single.output, data=data) == single
    with pytest.raises(ValueError, match="argument is 'x': give none, or tiny"):
        visdoc_mixture.get_config("x")


def test_an_unknown_objective_is_named():
    from configs import lora_visdoc

    with pytest.raises(ValueError, match="argument is 'tiny': choose one of pooled, late, hybrid, or tiny,hybrid"):
        lora_visdoc.get_config("tiny")


def test_the_command_refuses_an_unknown_key():
    done = run_main("train.posttrain", "--config", "configs/vidore.py", "--config.optimizer.lerning_rate=1")
    assert done.returncode != 0
    assert "unknown config key: 'lerning_rate'\nDid you mean \"learning_rate\"" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_main("train.posttrain", "--config", "configs/vidore.py", "--config.eval.benchmark=pages")
    assert done.returncode != 0 and "eval.benchmark is 'pages', but the config file evaluates none" in done.stderr


CONFIG_FILE = """
from pathlib import Path
from tests.training import make_config
from train.config import to_config_dict

def get_config(arg=""):
    inputs, output = arg.split(",")
    return to_config_dict(make_config(Path(inputs), Path(output), steps=50, eval__validation_batches=0))

def get_eval_fn(config):
    return lambda encoder: {"width": float(encoder.encode_query(["a"]).tokens.shape[1]), "seed": config.seed}
"""


@pytest.mark.slow
def test_the_command_trains_evaluates_and_prints_the_table(inputs, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    arguments = [f"--config={tmp_path}/config.py:{inputs},{tmp_path}/run", "--config.steps=2", "--config.seed=7"]
    done = run_python("-m", "train.posttrain", *arguments, "--config.adapter.dim=16")
    assert done.returncode == 0, done.stderr
    assert "after step 2" in done.stdout
    table = dict(line.split() for line in done.stdout.splitlines() if line.startswith("  eval/"))
    assert table == {"eval/width": "16.0000", "eval/seed": "7.0000"}
    again = run_main("train.posttrain", *arguments)
    assert again.returncode != 0 and "is not empty: --config.resume=True" in again.stderr
