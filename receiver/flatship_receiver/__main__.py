"""``python -m flatship_receiver``."""

from flatship_receiver.cli import main

main()
