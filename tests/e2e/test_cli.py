"""The command line as its users run it: processes of their own, exit codes, one-line errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

pytestmark = pytest.mark.e2e


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}


def mdlm(*words, cwd=None, timeout=300) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mdlm", *(w if isinstance(w, bytes) else str(w) for w in words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(),
        timeout=timeout,
    )


def refused(*words, cwd=None) -> str:
    """What a refused command says: one line on standard error, exit code 2, nothing printed."""
    out = mdlm(*words, cwd=cwd)
    assert out.returncode == 2, (out.returncode, out.stderr[-2000:])
    assert out.stdout == ""
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mdlm: "), out.stderr
    return lines[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a text, an experiment on it, and its finished run."""
    folder = tmp_path_factory.mktemp("work")
    tiny.write_text(folder / "text.txt")
    (folder / "tiny.py").write_text(tiny.FILE.format(text=str(folder / "text.txt")))
    out = mdlm("train", "tiny.py", "--out", "run", cwd=folder)
    assert out.returncode == 0, out.stderr[-3000:]
    assert "validation" in out.stderr and "next: mdlm eval run" in out.stdout
    return folder


def test_version_and_help():
    said = mdlm("--version").stdout  # and which program it is: there is another one of that name
    assert re.fullmatch(r"mdlm \d+\.\d+\.\d+ \(mdlm-jax, in /.*mdlm\)\n", said)
    text = mdlm("train", "--help").stdout
    assert "--train.steps 2000" in text and "resume an interrupted run" in text


@pytest.mark.slow
def test_a_second_start_compiles_nothing(work, tmp_path, monkeypatch):
    """Every program of the second start is found among those that the first one kept."""
    monkeypatch.setenv("MDLM_CACHE", str(tmp_path))
    kept = []
    for name in ("first", "second"):
        out = mdlm("train", "tiny.py", "--out", name, cwd=work)
        assert out.returncode == 0, out.stderr[-3000:]
        kept.append({path.name for path in tmp_path.glob("*-cache")})
    assert any(name.startswith("jit_train_step") for name in kept[0]) and kept[0] == kept[1]


def test_eval_reports_units_errors_and_protocol(work):
    out = mdlm("eval", "run", "--passes", 3, "--json", cwd=work)
    assert out.returncode == 0, out.stderr
    found = {m["name"]: m for m in json.loads(out.stdout)}
    assert set(found) == {"nats per token", "bits per byte", "bits per character", "perplexity"}
    nats = found["nats per token"]
    assert nats["stderr"] > 0 and nats["stderr_rows"] > 0 and "NELBO" in nats["protocol"]
    # Bytes are tokens here, apart from the one EOS.
    assert found["bits per byte"]["value"] == pytest.approx(nats["value"] / 0.6931, rel=2e-3)
    again = mdlm("eval", "run", "--passes", 3, "--json", cwd=work)
    assert again.stdout == out.stdout
    words = mdlm("eval", "run", "--data", "text.txt", cwd=work)
    assert words.returncode == 0 and "+-" in words.stdout and "perplexity" in words.stdout


def test_other_files_are_read_as_the_run_reads(work):
    """The same file has the same number, whether the experiment or an option names it."""
    texts = (work / "text.txt").read_text().splitlines()
    lines = [json.dumps({"body": text, "id": int("9" * 4000)}) for text in texts]
    (work / "a.jsonl").write_text("\n".join(lines[40:]))
    (work / "b.jsonl").write_text("\n".join([*lines[:40], '{"body": null}']))
    (work / "b.txt").write_text("|".join(texts[:40]))
    source = "TextFiles(train='a.jsonl', valid='b.jsonl', text_field='body', undecodable='drop')"
    out = mdlm("train", "tiny.py", "--out", "json", "--data.source", source, cwd=work)
    assert out.returncode == 0, out.stderr
    values = []
    for words in ((), ("--data", "b.jsonl"), ("--data", "b.txt", "--separator", "|")):
        out = mdlm("eval", "json", "--json", *words, cwd=work)
        assert out.returncode == 0, out.stderr
        values.append([(m["value"], m["n"]) for m in json.loads(out.stdout)])
    assert values[0] == values[1] == values[2]
    assert "no field 'text'" in refused(
        "eval", "json", "--data", "b.jsonl", "--text-field", "text", cwd=work
    )


def test_sample_prompts_infills_and_lengths(work):
    out = mdlm(
        "sample", "run", "--prompt", "the quick", "--num", 2, "--length", 80, "--json", cwd=work
    )
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert len(found["texts"]) == 2 and found["nfe"] > 0 and found["tokens_per_second"] > 0
    assert all(t["text"].startswith("the quick") and len(t["tokens"]) == 80 for t in found["texts"])
    assert found["texts"][0]["text"] != found["texts"][1]["text"]
    infill = "the [MASK:5] brown [MASK] fox"
    out = mdlm("sample", "run", "--infill", infill, "--seed", 3, "--json", cwd=work)
    text = json.loads(out.stdout)["texts"][0]
    assert len(text["tokens"]) == len("the ") + 5 + len(" brown ") + 1 + len(" fox")
    assert bytes(text["tokens"][:4]) == b"the " and bytes(text["tokens"][-4:]) == b" fox"
    same = mdlm("sample", "run", "--infill", infill, "--seed", 3, "--json", cwd=work)
    assert json.loads(same.stdout)["texts"] == [text]
    plain = mdlm("sample", "run", "--sampler", "Reverse(steps=4)", cwd=work)
    assert plain.returncode == 0 and re.search(r"NFE \d+.*tokens/s", plain.stderr)


def test_a_trace_is_recorded_and_shown(work):
    words = ("sample", "run", "--prompt", "the ", "--length", 40, "--num", 2, "--json")
    out = mdlm(*words, "--trace", "long.trace", cwd=work)
    assert out.returncode == 0 and "mdlm view long.trace" in out.stderr, out.stderr
    trace = json.loads((work / "long.trace").read_text())
    assert trace["origin"] == "run, step 20, seed 0"
    texts = json.loads(out.stdout)["texts"]
    found = json.loads((work / "long.trace").read_text())
    assert found["nfe"][-1] == json.loads(out.stdout)["nfe"] and len(found["rows"]) == 2
    for row, text in zip(found["rows"], texts, strict=True):
        tokens = list(row["start"])
        assert bytes(tokens[:4]) == b"the " and set(tokens[4:]) == {found["mask"]}
        for _, position, token, confidence in row["events"]:
            tokens[position] = token
            assert 0 < confidence <= 1
        assert tokens == text["tokens"]
        assert "".join(found["pieces"][str(token)] for token in tokens) == text["text"]
    # More windows than one: the steps of all of them.
    assert found["steps"] > 16 and max(e[0] for e in found["rows"][0]["events"]) > 16
    shown = mdlm("view", "long.trace", "--row", 2, cwd=work)
    assert shown.returncode == 0 and shown.stdout.endswith(f"\n\n{texts[1]['text']}\n")
    assert "\x1b" not in shown.stdout and "remasked" in shown.stdout
    shown = mdlm("view", "long.trace", "--html", "long.html", "--gif", "long.gif", cwd=work)
    assert shown.returncode == 0 and shown.stdout.count("long.") == 2
    assert (work / "long.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert (work / "long.gif").read_bytes().startswith(b"GIF89a")
    infill = ("sample", "run", "--infill", "the [MASK:5] fox", "--num", 2, "--json")
    texts = json.loads(mdlm(*infill, "--trace", "infill.trace", cwd=work).stdout)["texts"]
    for row, text in zip(
        json.loads((work / "infill.trace").read_text())["rows"], texts, strict=True
    ):
        assert sorted(event[1] for event in row["events"]) == [4, 5, 6, 7, 8]
        tokens = dict(enumerate(row["start"])) | {e[1]: e[2] for e in row["events"]}
        assert list(tokens.values()) == text["tokens"]


@pytest.fixture
def bad(work):
    """Files beside those of `work` that are not what they should be."""
    whole = {"mdlm_trace": 1, "sampler": "", "mask": 0, "pieces": {"0": ""}, "steps": 0}
    whole |= {"nfe": [0], "rows": [{"start": [0], "events": []}]}
    contents = {
        "whole.trace": json.dumps(whole).encode(),
        "cut.trace": json.dumps(whole).encode()[:-5],
        "bad.txt": b"good text \xff\xfe",
        "empty.txt": b"",
        "raises.py": b"1 / 0\n",
    }
    for name, content in contents.items():
        (work / name).write_bytes(content)
    yield
    for name in contents:
        (work / name).unlink()


TRAIN = ("train", "tiny.py", "--out", "x")
BAD_INPUT = [
    (("train", "missing.py"), "no such file"),
    (("train", "tiny.py", "--train.stpes", "3"), "did you mean --train.steps?"),
    (("train", "tiny.py", "--train.steps", "many"), "expected a whole number"),
    (("train", "tiny.py", "--train.steps"), "a value is missing"),
    (("train", "tiny.py", "--train.steps", "0"), "train.steps=0: must be at least 1"),
    ((*TRAIN, "--data.source.train", "no.txt"), "no.txt"),
    ((*TRAIN, "--data.packing.length", "9999999"), "too few"),
    ((*TRAIN, "--mesh.fsdp", "3"), "does not fit 1 devices"),
    (("train", "tiny.py", "--out", "run", "--network.width", "64"), "network.width: 32 there"),
    ((*TRAIN, "--profile", "0"), "--profile 0: must be at least 1"),
    ((*TRAIN, "--profile", "18"), "20 steps are left"),
    ((*TRAIN, "--init-from", "nowhere"), "not a run folder"),
    (("eval", "nowhere"), "not a run folder"),
    (("eval", "run", "--step", "7"), "no checkpoint of step 7"),
    (("eval", "run", "--passes", "0"), "--passes 0: must be at least 1"),
    (("eval", "run", "--separator", "|"), "--separator |: allowed with --data FILE"),
    (("eval", "run", "--data", "text.txt", "--undecodable", "no"), "one of refuse, drop"),
    (("eval", "run", "--stpes", "3"), "no such option"),
    (("eval", "run", "--data", "no.txt"), "no.txt"),
    (("sample", "run", "--length", "0"), "--length 0: must be from 1 to 10,000,000"),
    (("sample", "run", "--prompt", "x" * 50, "--length", "10"), "more than the 10"),
    (("sample", "run", "--infill", "no blank"), "no [MASK]"),
    (("sample", "run", "--infill", "[MASK:99]"), "window of this model"),
    (("sample", "run", "--infill", "a[MASK:0]"), "a blank has 1 to"),
    (("sample", "run", "--infill", "[MASK:3 not"), "'[MASK:3 not' is no blank"),
    (
        ("sample", "run", "--infill", "[MASK]", "--length", "3"),
        "--length: not allowed with --infill",
    ),
    (("sample", "run", "--infill", "[MASK]", "--stop-at-eos"), "--stop-at-eos: not allowed with"),
    (("sample", "run", "--prompt", b"caf\xc3"), "--prompt is not UTF-8: byte 0xc3 at offset 3"),
    (("sample", "run", "--top-p", "1.5"), "top_p=1.5"),
    (("sample", "run", "--temperature", "warm"), "expected a number, or FIRST:LAST"),
    (("sample", "run", "--temperature", "1:-1"), "temperature.last=-1.0"),
    (("sample", "run", "--ban", ""), "bans nothing"),
    (("sample", "run", "--ban-id", "260"), "outside the vocabulary of 260"),
    (("sample", "run", "--sampler", "Ancestral(steps=0)"), "steps=0: must be at least 1"),
    (("sample", "run", "--num", "0"), "--num 0: must be from 1 to 10,000,000"),
    (("sample", "run", "--sampler", "LeftToRight"), "needs a network that attends to"),
    (("sample", "run", "--trace", "nowhere/x.trace"), "name a file in an existing folder"),
    (("view", "no.trace"), "no.trace: no such file"),
    (("view", "cut.trace"), "cut.trace is a truncated or damaged trace"),
    (("view", "whole.trace", "--fps", "0"), "--fps 0"),
    ((*TRAIN, "--data.source.train", "bad.txt"), "bad.txt"),
    ((*TRAIN, "--data.source.train", "empty.txt"), "empty.txt is empty"),
    (("train", "raises.py"), "line 1: ZeroDivisionError"),
]


@pytest.mark.parametrize(("words", "message"), BAD_INPUT)
def test_bad_input_is_one_line(work, bad, words, message):
    before = sorted(p.name for p in work.iterdir())
    assert message in refused(*words, cwd=work)
    assert sorted(p.name for p in work.iterdir()) == before  # nothing half-written


@pytest.mark.slow
def test_out_of_vocabulary_prompt_is_refused(work):
    words = ("--out", "letters", "--train.steps", "1")
    text = (work / "tiny.py").read_text().replace("Bytes", "Characters")
    (work / "letters.py").write_text(text)
    assert mdlm("train", "letters.py", *words, cwd=work).returncode == 0
    assert "\u00e9" in refused("sample", "letters", "--prompt", "caf\u00e9", cwd=work)


@pytest.mark.slow
def test_profile_prints_time_by_part_and_the_log_has_mfu(work):
    out = mdlm("train", "tiny.py", "--out", "traced", "--profile", 3, cwd=work)
    assert out.returncode == 0, out.stderr[-3000:]
    table = (work / "traced" / "profile" / "profile.txt").read_text()
    assert table in out.stdout and "3 steps traced" in table and "next: mdlm eval" in out.stdout
    found = json.loads((work / "traced" / "profile" / "profile.json").read_text())
    parts = {name: sum(times.values()) for name, times in found["parts"].items()}
    assert {"embed", "attention", "mlp", "head", "optimizer", "ema"} <= set(parts)
    assert sum(parts.values()) + found["idle"] == pytest.approx(found["step"])
    # What the names do not reach is little.
    assert parts.get("other", 0) < found["step"] / 4
    assert found["products"]["attention"] > 0 and found["products"]["optimizer"] == 0
    lines = [json.loads(s) for s in (work / "traced" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["mfu"] for line in lines if "mfu" in line]
    assert rates and all(0 < rate < 1.5 for rate in rates)
    # The run itself is that of the same command without the option.
    scores = [mdlm("eval", run, "--json", cwd=work).stdout for run in ("run", "traced")]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_saves_and_the_same_command_continues(work, number, code):
    out = f"stopped-{code}"
    command = [
        "train",
        "tiny.py",
        "--out",
        out,
        "--train.steps",
        "100000",
        "--train.log_every",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mdlm", *command],
        cwd=work,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    log = work / out / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.is_file() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == code, said
    step = int(re.search(r"stopped at step (\d+), saved; to continue: mdlm train", said).group(1))
    # The same command, with the steps it had made and two more.
    command[command.index("--train.steps") + 1] = str(step + 2)
    out = mdlm(*command, cwd=work)
    assert out.returncode == 0 and f"step {step} of {step + 2}" in out.stderr, out.stderr


@pytest.mark.slow
def test_tokens_that_are_banned_are_not_written(work):
    words = ("sample", "run", "--num", 4, "--temperature", "1.0:0.5", "--json")
    tokens = lambda out: [bytes(text["tokens"]) for text in json.loads(out.stdout)["texts"]]
    out = mdlm(*words, cwd=work)
    assert out.returncode == 0, out.stderr
    assert set(b"ae ") & set(b"".join(tokens(out)))
    options = ("--ban", "ae", "--ban-id", ord(" "), "--top-p", 0.9, "--top-p-rule", "below")
    out = mdlm(*words, *options, cwd=work)
    assert out.returncode == 0, out.stderr
    assert not set(b"ae ") & set(b"".join(tokens(out)))
    out = mdlm(*words, *options, "--infill", "the [MASK:9] ate", cwd=work)
    for text in tokens(out):
        assert text[:4] == b"the " and text[-4:] == b" ate" and not set(b"ae ") & set(text[4:13])


def test_from_python(work):
    import mdlm as package

    run = package.load(work / "run")
    metrics = run.perplexity()
    assert metrics[0].name == "nats per token" and 0 < metrics[0].value < 5
    out = run.generate("the ", length=40, num=2, top_p=0.9)
    assert all(t.text.startswith("the ") for t in out.texts)
    again = run.generate("the ", length=40, num=2, top_p=0.9)
    assert out.texts == again.texts
    # Followed step by step, this small network computes the same.
    traced = run.generate("the ", length=40, num=2, top_p=0.9, trace=True)
    assert traced.texts == out.texts and traced.nfe == out.nfe == traced.trace.nfe[-1]
    assert traced.trace.rows[1].after(traced.trace.steps).tolist() == list(out.texts[1].tokens)
    assert out.trace is None


@pytest.mark.slow
def test_autoregressive_baseline_from_the_same_commands(work):
    text = (work / "tiny.py").read_text()
    text = text.replace("mdlm.models import DiT", "mdlm.models import CausalTransformer")
    text = text.replace("DiT(width=32, depth=2, heads=2, cond_dim=16, dropout=0.1)", "NETWORK")
    text = text.replace("mdlm.samplers import Ancestral", "mdlm.samplers import LeftToRight")
    text = text.replace("Ancestral(steps=16)", "LeftToRight()").replace(
        "network=NETWORK",
        "network=CausalTransformer(width=32, depth=2, heads=2),\n    objective=Autoregressive()",
    )
    text = text.replace(
        "from mdlm.optim",
        "from mdlm.objectives import Autoregressive\nfrom mdlm.optim",
    )
    (work / "ar.py").write_text(text)
    out = mdlm("train", "ar.py", "--out", "ar", cwd=work)
    assert out.returncode == 0, out.stderr[-2000:]
    found = json.loads(mdlm("eval", "ar", "--json", cwd=work).stdout)
    assert "exact NLL" in found[0]["protocol"] and found[0]["stderr"] is None
    assert found[0]["stderr_rows"] > 0
    sampled = mdlm("sample", "ar", "--prompt", "the ", "--length", 40, "--json", cwd=work)
    assert json.loads(sampled.stdout)["texts"][0]["text"].startswith("the ")
    assert "has no number of steps" in refused("sample", "ar", "--steps", "3", cwd=work)


@pytest.mark.slow
@pytest.mark.golden
def test_import_reproduces_the_logits_of_published_weights(work, golden, golden_folder):
    """An alphabet of 63 characters and four special tokens is the reference's 67 columns."""
    letters = [chr(c) for c in range(48, 48 + 63)]
    (work / "letters.txt").write_text("".join(letters) * 20)
    text = (work / "tiny.py").read_text().replace("Bytes", "Characters")
    text = text.replace(str(work / "text.txt"), str(work / "letters.txt"))
    text = text.replace(
        "width=32, depth=2, heads=2, cond_dim=16, dropout=0.1",
        "width=64, depth=2, heads=4, cond_dim=32",
    )
    (work / "published.py").write_text(text)
    weights = golden_folder / "mdlm_dit.safetensors"
    out = mdlm("import", weights, "published.py", "--out", "published", cwd=work)
    assert out.returncode == 0, out.stderr
    half = ("--out", "half", "--dtype", "bfloat16")
    assert mdlm("import", weights, "published.py", *half, cwd=work).returncode == 0
    sizes = [(work / name / "weights.safetensors").stat().st_size for name in ("published", "half")]
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    assert not (work / "published" / "checkpoints").exists()
    import jax.numpy as jnp
    import numpy as np

    import mdlm as package
    from mdlm.types import NetInput

    run = package.load(work / "published")
    data = golden("mdlm_dit.npz")
    logits = run.model.diffusion(run.params).denoise(
        NetInput(tokens=jnp.asarray(data["x"], jnp.int32))
    )
    np.testing.assert_allclose(logits.logits(), data["logits_notime"], rtol=1e-5, atol=2e-5)
    assert run.step == 0 and package.load(work / "half").params["network"]["head"][
        "kernel"
    ].dtype == jnp.dtype("bfloat16")
    assert mdlm("sample", "half", "--steps", "4", cwd=work).returncode == 0
    # The sizes are what is wrong; a store that is not there would not be, for bytes need no text.
    said = refused(
        *("import", weights, "tiny.py", "--data.store", "nowhere", "--out", "wrong"), cwd=work
    )
    assert "nowhere" not in said
    assert not (work / "wrong").exists()
