"""The samples in deploy/ are what the programs read."""

from pathlib import Path

from flatship_receiver.config import DEFAULT_HTTP, DEFAULT_LISTEN, configure

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_sample_of_a_receiver_is_a_configuration_with_the_defaults(tmp_path: Path) -> None:
    config = configure(config=DEPLOY / "receiver.toml", state=tmp_path / "state")
    assert (str(config.listen), str(config.http)) == (DEFAULT_LISTEN, DEFAULT_HTTP)
    assert config.datastores == {"ssd1": Path("/srv/nfs/ssd1")}
