"""What run folders keep, made by hand, with texts that try to become markup."""

from mdlm.runs.kept import KeptRun

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[2J\u202e\udcff{{body}}"


def kept(name="runs/one", **changes):
    steps = range(10, 110, 10)
    train = [
        {
            "kind": "train",
            "step": step,
            "time": 1.0,
            "nelbo": 6 - step / 100,
            "learning_rate": 0.01,
            "tokens_per_second": 5000.0,
            "loss_by_time": [1.0, None, 3.0, 4.0],
        }
        for step in steps
    ]
    valid = {
        "kind": "valid",
        "step": 100,
        "time": 2.0,
        "protocol": "valid, rows of 8, NELBO",
        "nats per token": 5.25,
        "nats per token stderr": None,
        "nats per token stderr_rows": 0.125,
        "perplexity": 190.57,
        "perplexity stderr_rows": 23.8,
    }
    values = {
        "name": name,
        "settings": {"name": "'one'", "network": "DiT(depth=3)", "seed": "1"},
        "overrides": [],
        "metrics": [*train, valid],
        "evaluations": [],
        "starts": [{"started": "2026-11-30T10:00:00+00:00", "mdlm": "0.2.0", "devices": ["cpu:0"]}],
        "samples": [("step 100, sample 1", "The cat\nsat.")],
    }
    return KeptRun(**{**values, **changes})


def evaluation(name, value, protocol="valid, rows of 8, NELBO", **changes):
    errors = {"stderr": 0.01, "stderr_rows": 0.5}
    when = {"date": "2026-11-30T11:00:00+00:00", "step": 100}
    return {"name": name, "value": value, "protocol": protocol, **errors, **when, **changes}


def hostile():
    """A run of which every text is hostile, and every number is none."""
    line = {"kind": "train", "step": 5, "time": 0.0, "nelbo": HOSTILE, "loss_by_time": [HOSTILE]}
    valid = {**line, "kind": "valid", "protocol": HOSTILE, "nats per token": HOSTILE}
    return kept(
        HOSTILE,
        settings={HOSTILE: HOSTILE, "network": HOSTILE},
        metrics=[line, valid],
        evaluations=[
            evaluation(HOSTILE, 1.0, HOSTILE, date=HOSTILE),
            evaluation(f"times (0.0.1, 1]: {HOSTILE}", 1.0, HOSTILE),
            evaluation(f"blank of 4, middle: {HOSTILE}", None, HOSTILE, stderr_rows=HOSTILE),
        ],
        starts=[{"started": HOSTILE, "git": {"commit": HOSTILE}, "packages": {HOSTILE: HOSTILE}}],
        samples=[(HOSTILE, HOSTILE)],
        frontier={
            "step": 1,
            "protocol": [HOSTILE],
            "rows": [
                {
                    "texts": 1,
                    "settings": {HOSTILE: HOSTILE},
                    "measures": {HOSTILE: {"value": 1e300, "stderr": None}},
                }
            ],
        },
    )
