"""`python -m lshfm_pl`: list the commands; `--version` prints the version."""

import ast
import sys
from pathlib import Path

from lshfm_pl import __version__
from lshfm_pl.cli.streams import prepare_streams
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["commands", "main"]


def commands() -> dict[str, str]:
    """Each command's name → a description, from its module's docstring. The modules are read, not imported."""
    found = {}
    for path in sorted(CONFIG_DIR.glob("*.yaml")):
        module = Path(__file__).with_name(f"{path.stem}.py")
        first = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n")[0]
        found[path.stem] = first.partition(": ")[2]
    return found


def main() -> None:
    """Print the commands or the version; exit with status 1 for any other argument."""
    prepare_streams()
    if sys.argv[1:] == ["--version"]:
        print(f"lshfm_pl {__version__}")
        return
    known = commands()
    wrong = [argument for argument in sys.argv[1:] if argument not in ("-h", "--help")]
    if wrong:
        given = f"python -m lshfm_pl.{wrong[0]}" if wrong[0] in known else "one of the commands below"
        print(f"error: expected {given}, found python -m lshfm_pl {' '.join(wrong)}", file=sys.stderr)
    width = max(map(len, known))
    print(f"lshfm_pl {__version__}: python -m lshfm_pl.<command> …; --help shows a command's arguments\n")
    for name, text in known.items():
        print(f"  {name:{width}}  {text}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
