"""``config`` and ``password``: what a file says, and who may read metrics."""

from flatship_sender.config import read
from flatship_service.config_command import config_command
from flatship_service.password_command import password_command

config = config_command(read)
password = password_command
