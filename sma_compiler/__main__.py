"""`python -m sma_compiler` is `sma`."""

from sma_compiler.cli.main import app

if __name__ == "__main__":
    app(prog_name="python -m sma_compiler")
