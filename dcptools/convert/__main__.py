"""``python -m dcptools.convert``: the command line of the main job."""

from dcptools.cli import convert_command, run

if __name__ == "__main__":
    run(convert_command, "python -m dcptools.convert")
