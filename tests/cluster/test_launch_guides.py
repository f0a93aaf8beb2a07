"""Every `mdlm` command of the guides has options, settings and files that exist, and every script
is valid bash."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from mdlm.cli.arguments import overrides
from mdlm.cli.main import COMMANDS, parser
from mdlm.config.overrides import names
from mdlm.experiment.loading import load_file
from mdlm.planning.topology import Topology

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "launch").glob("*.md"))
PAGES = [*GUIDES, ROOT / "docs" / "scale.md", ROOT / "README.md"]
NAMES = "train|eval|sample|plan|prepare|import|view|samplers|settings|tokenizer"
LAUNCHED = re.compile(rf"(?:^|[\s\"'`/])mdlm ((?:{NAMES})\b.*)")
"""A command, with anything before it."""
PRINTED = ("next: ", "mdlm: ", "...")
"""Marks of printed output, and of commands with a part left out."""
WORD = re.compile(r"""\s?(?:([^\s"'`]*)(["'])(.*?)\2|([^\s"'`]+))(?=[\s"'`]|$)""")
OPERATOR = re.compile(r"\s*(?:[|&<>;#]|\d>)|\s{2,}\S")


def arguments(text: str) -> list[str]:
    """The words of a command up to a shell operator, a remark, or the quote that closes the string
    around the command."""
    words = []
    while text and not OPERATOR.match(text):
        word = WORD.match(text)
        if word is None:
            break
        words.append(word[4] or f"{word[1]}{word[3]}")
        text = text[word.end() :]
    return words


def commands(page: str) -> list[list[str]]:
    """The arguments of each `mdlm` command: in lines of code, and in code within lines."""
    page = re.sub(r"\\\n\s*", "", page)
    # W="..." over several lines, and $W in what follows.
    variables = dict(re.findall(r"^    (\w)=\"(--[^\"]*)\"", page, re.M))
    for name, value in variables.items():
        whole = " ".join(["mdlm plan experiments/owt_small.py", *value.split()])
        page = page.replace(f"`${name} ", f"`{whole} ")
    found = []
    for line in page.splitlines():
        is_code = line.startswith("    ") or not re.search(r"`[^`]+`", line)
        for piece in [line] if is_code else re.findall(r"`([^`]+)`", line):
            match = LAUNCHED.search(piece)
            if match is None or any(word in piece for word in PRINTED):
                continue
            words = arguments(match[1])
            if len(words) > 1 or words == ["samplers"]:  # a name alone is no command
                found.append(words)
    return found


@cache
def settings(path: Path) -> set[str]:
    return {name for name, _, _ in names(load_file(path))}


def pages() -> list:
    return [
        pytest.param(words, id=f"{page.name}: mdlm {' '.join(words)}"[:90])
        for page in PAGES
        for words in commands(page.read_text())
    ]


@pytest.mark.parametrize("words", pages())
def test_a_command_is_accepted(words):
    args, rest = parser().parse_known_args(words)
    changes = overrides(rest)
    assert not changes or COMMANDS[args.command].takes_settings
    file = getattr(args, "experiment", None)
    if file is None or not file.startswith("experiments/"):
        return
    known = settings(ROOT / file)
    for name, _ in changes:
        # A setting of another component than the default is known by its first name only.
        assert name in known or name.startswith("data."), f"{file} has no setting {name}"
    if args.command == "plan":
        Topology.parse(args.topology)


def test_all_pages_have_commands():
    for page in GUIDES:
        assert commands(page.read_text()), page.name
        assert page.name == "README.md" or f"]({page.name})" in GUIDES_INDEX


GUIDES_INDEX = (ROOT / "docs" / "launch" / "README.md").read_text()


def scripts() -> list:
    blocks = [
        (f"{page.name} {i}", block)
        for page in GUIDES
        for i, block in enumerate(re.findall(r"```bash\n(.*?)```", page.read_text(), re.S))
    ]
    blocks.append(("again.sh", (ROOT / "docs/launch/again.sh").read_text()))
    return [pytest.param(block, id=name) for name, block in blocks]


@pytest.mark.parametrize("script", scripts())
def test_a_script_is_valid(script):
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("codes", "tries", "expected", "runs"),
    [
        ("0", 9, 0, 1),
        ("4 0", 9, 0, 2),
        ("4 137 4 0", 9, 0, 4),
        ("2 0", 9, 2, 1),
        ("4 3 0", 9, 3, 2),
        ("143 0", 9, 143, 1),
        ("4 4 4 4", 3, 4, 3),
    ],
)
def test_again_repeats_after_codes_that_may_pass(tmp_path, codes, tries, expected, runs):
    """A command ends with these codes, one after another."""
    command = tmp_path / "command"
    command.write_text(
        'echo >> ran; set -- $CODES; shift $(( $(wc -l < ran) - 1 )); exit "$1"\n',
    )
    done = subprocess.run(
        ["bash", str(ROOT / "docs/launch/again.sh"), "bash", str(command)],
        env={
            "PATH": "/usr/bin:/bin",
            "AGAIN_AFTER": "0",
            "AGAIN_TRIES": str(tries),
            "CODES": codes,
        },
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == expected
    assert len((tmp_path / "ran").read_text().splitlines()) == runs


def test_again_passes_on_sigterm(tmp_path):
    """SIGTERM reaches the command, whose exit code is passed on."""
    command = tmp_path / "command"
    command.write_text(
        "trap 'sleep 0.3; exit 143' TERM; touch ready; for i in {1..400}; do sleep 0.05; done\n"
    )
    with subprocess.Popen(
        ["bash", str(ROOT / "docs/launch/again.sh"), "bash", str(command)], cwd=tmp_path
    ) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_the_manifest_is_yaml_and_fits_together():
    yaml = pytest.importorskip("yaml")
    page = (ROOT / "docs/launch/gke.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", page, re.S)
    assert block is not None
    claim, jobset = yaml.safe_load_all(block[1])
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == container["name"] and rule["values"] == [2, 3]
    chips = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    hosts = chips[0] * chips[1] // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts
    args, rest = parser().parse_known_args(container["args"])
    known = settings(ROOT / args.experiment)
    assert all(name in known or name.startswith("data.") for name, _ in overrides(rest))
