"""`mdlm completion`."""

import argparse

from mdlm.cli.common import Changes, Command


def run(args: argparse.Namespace, _: Changes) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["mdlm"], shell=args.shell))
    return 0


COMPLETION_HELP = """\
Once, for each new shell:

  echo 'eval "$(mdlm completion bash)"' >> ~/.bashrc
  echo 'eval "$(mdlm completion zsh)"' >> ~/.zshrc          below the line with compinit
  mdlm completion fish > ~/.config/fish/completions/mdlm.fish"""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=("bash", "zsh", "fish"))


COMMAND = Command(
    name="completion",
    help="print a script that lets the shell complete commands and experiments",
    epilog=COMPLETION_HELP,
    arguments=arguments,
    run=run,
    computes=False,
)
