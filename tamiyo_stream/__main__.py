"""``python -m tamiyo_stream`` is ``tamiyo-stream``."""

from tamiyo_stream.cli.app import main

main()
