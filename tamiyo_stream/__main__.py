"""``python -m tamiyo_stream`` is ``tamiyo-stream``."""

from tamiyo_stream.cli import main

main()
