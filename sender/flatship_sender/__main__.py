"""``python -m flatship_sender``."""

from flatship_sender.cli import main

main()
