"""`mdlm completion`."""

import argparse

from mdlm.cli.command import Changes, Command


def run(args: argparse.Namespace, _: Changes) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["mdlm"], shell=args.shell))
    return 0


COMPLETION_HELP = """\
Add the line for your shell once; completion then works in every new shell:

  echo 'eval "$(mdlm completion bash)"' >> ~/.bashrc
  echo 'eval "$(mdlm completion zsh)"' >> ~/.zshrc    (after compinit)
  mdlm completion fish > ~/.config/fish/completions/mdlm.fish"""


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to configure")


COMMAND = Command(
    name="completion",
    help="print a script for shell completion of commands and experiments",
    epilog=COMPLETION_HELP,
    arguments=arguments,
    run=run,
    computes=False,
)
