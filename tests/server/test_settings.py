"""Settings: where they come from, what is refused, and that secrets stay secret."""

import json
import logging
from pathlib import Path

import pytest

from nearcast.errors import ConfigurationError
from nearcast.world import Cap
from server import reference
from server.core import policy_of
from server.credentials import FILE, secrets_for
from server.settings import Settings, load, parse_quiet_hours

LONG = "x" * 32


def test_defaults_need_nothing() -> None:
    """With nothing set everything runs on loopback, with an embedded store and Valkey Streams as the log."""
    settings = load()
    assert (settings.redis_url, settings.kafka) == (None, None)
    assert settings.api_host == settings.gateway_host == "127.0.0.1"
    assert set(settings.roles) == {"api", "engine", "dispatcher", "gateway"}


def test_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TOML file sets; the environment overrules it."""
    file = tmp_path / "nearcast.toml"
    file.write_text('partitions = 8\nlog_level = "debug"\n[api_keys]\nintake = "k"\n')
    monkeypatch.setenv("NEARCAST_CONFIG", str(file))
    monkeypatch.setenv("NEARCAST_PARTITIONS", "16")
    settings = load()
    assert (settings.partitions, settings.log_level) == (16, "debug")
    assert settings.api_keys["intake"].get_secret_value() == "k"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NEARCAST_PARTITION": "8"}, "NEARCAST_PARTITION"),
        ({"NEARCAST_PARTITIONS": "0"}, "NEARCAST_PARTITIONS"),
        ({"NEARCAST_STALL_AFTER_S": "0"}, "NEARCAST_STALL_AFTER_S"),
        ({"NEARCAST_INSTANCE_ID": "a b"}, "NEARCAST_INSTANCE_ID"),
        ({"NEARCAST_TRUSTED_PROXIES": '["10.0.0.1/8"]'}, "NEARCAST_TRUSTED_PROXIES"),
        ({"NEARCAST_GATEWAY_DRAIN_S": "-1"}, "NEARCAST_GATEWAY_DRAIN_S"),
        ({"NEARCAST_DEAD_LETTERS_LIMIT": "0"}, "NEARCAST_DEAD_LETTERS_LIMIT"),
        ({"NEARCAST_LATE_AFTER_S": "0"}, "NEARCAST_LATE_AFTER_S"),
        ({"NEARCAST_ROLES": '["cook"]'}, "NEARCAST_ROLES"),
        ({"NEARCAST_ROLES": "api"}, "NEARCAST_ROLES: is not JSON"),
        ({"NEARCAST_CAPS": "[{"}, "NEARCAST_CAPS: is not JSON"),
        ({"NEARCAST_CAPS": '{"count": 1}'}, "NEARCAST_CAPS: must be a list, not a set of fields"),
        ({"NEARCAST_CAPS": '[{"count": 1}]'}, r"NEARCAST_CAPS: \[0\]: a cap has either `period_s`"),
        ({"NEARCAST_CAPS": '[{"count": 0, "period": "day"}]'}, r"NEARCAST_CAPS: \[0\]\.count: must be at least 1"),
        ({"NEARCAST_CAPS": '[{"count": 1, "perod": "day"}]'}, "`perod` is not a field here"),
        ({"NEARCAST_PERSONAL_PRICES": "perhaps"}, "NEARCAST_PERSONAL_PRICES"),
        ({"NEARCAST_ROLES": "[]"}, "NEARCAST_ROLES"),
        ({"NEARCAST_API_KEYS": '{"boss": "k"}'}, "NEARCAST_API_KEYS"),
        ({"NEARCAST_QUIET_HOURS": "9-17"}, "NEARCAST_QUIET_HOURS"),
        ({"NEARCAST_QUIET_HOURS": "08:00-08:00"}, "NEARCAST_QUIET_HOURS"),
        ({"NEARCAST_QUIET_HOURS": "24:00-08:00"}, "NEARCAST_QUIET_HOURS"),
        ({"NEARCAST_COUPON_SECRET": "short"}, "NEARCAST_COUPON_SECRET"),
        ({"NEARCAST_REDIS_URL": "redis://x"}, "NEARCAST_TOKEN_SECRET"),
        ({"NEARCAST_SMTP_HOST": "mail"}, "NEARCAST_MAIL_FROM"),
        ({"NEARCAST_SMS_ACCOUNT": "AC1", "NEARCAST_SMS_AUTH_TOKEN": "t"}, "NEARCAST_SMS_FROM"),
        ({"NEARCAST_DEMO": "true", "NEARCAST_GATEWAY_HOST": "0.0.0.0"}, "NEARCAST_DEMO"),
        ({"NEARCAST_CONFIG": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str) -> None:
    """A wrong or unknown setting stops the start, with its name."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said):
        load()


def test_caps_from_either_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of caps, from the file or as JSON in the environment, stands beside the offers per day in the policy."""
    weekly = Cap(count=2, period="week", channels=["sms"])
    file = tmp_path / "nearcast.toml"
    file.write_text('personal_prices = true\n[[caps]]\ncount = 2\nperiod = "week"\nchannels = ["sms"]\n')
    monkeypatch.setenv("NEARCAST_CONFIG", str(file))
    assert policy_of(load()).caps == (Cap(count=6, period_s=86_400), weekly)
    assert policy_of(load()).personal_prices
    monkeypatch.setenv("NEARCAST_CAPS", '[{"count": 1, "period_s": 60, "tags": ["loud"]}]')
    monkeypatch.setenv("NEARCAST_OFFERS_PER_DAY", "9")
    expected = (Cap(count=9, period_s=86_400), Cap(count=1, period_s=60, tags=["loud"]))
    assert policy_of(load()).caps == expected


@pytest.mark.parametrize("text", ["partitons = 8\n", "[api_keys]\nboss = 'k'\n", "partitions = \n", "\x00"])
def test_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Unknown keys and broken syntax in the file are fatal as well."""
    file = tmp_path / "nearcast.toml"
    file.write_text(text)
    monkeypatch.setenv("NEARCAST_CONFIG", str(file))
    with pytest.raises(ConfigurationError):
        load()


def test_secrets_show_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither settings nor errors nor logs repeat a secret."""
    monkeypatch.setenv("NEARCAST_TOKEN_SECRET", "too-short-but-secret")
    monkeypatch.setenv("NEARCAST_REDIS_URL", "redis://:hunter2@host/0")
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert "too-short-but-secret" not in str(refused.value)
    monkeypatch.setenv("NEARCAST_TOKEN_SECRET", LONG)
    monkeypatch.setenv("NEARCAST_COUPON_SECRET", LONG)
    monkeypatch.setenv("NEARCAST_LINK_SECRET", LONG)
    monkeypatch.setenv("NEARCAST_API_KEYS", json.dumps({"admin": "the-admin-key"}))
    settings = load()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("nearcast").info("%s %r %s", settings, settings, secrets_for(settings))
    for secret in (LONG, "hunter2", "the-admin-key"):
        assert secret not in repr(settings) + str(settings) + caplog.text + repr(secrets_for(settings))


def test_made_secrets_are_kept(tmp_path: Path) -> None:
    """Without configured secrets each data directory gets its own, readable by its owner only, and keeps them."""
    first = secrets_for(load(data_dir=tmp_path / "a"))
    assert secrets_for(load(data_dir=tmp_path / "a")) == first
    other = secrets_for(load(data_dir=tmp_path / "b"))
    assert not set(first.api_keys.values()) & set(other.api_keys.values())
    assert len({first.token, first.coupon, first.link, other.token}) == 4
    assert (tmp_path / "a" / FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "a" / FILE).write_text("{")
    with pytest.raises(ConfigurationError, match=FILE):
        secrets_for(load(data_dir=tmp_path / "a"))


def test_quiet_hours() -> None:
    """The window is given in minutes of the day; an empty text means none."""
    assert parse_quiet_hours("21:00-08:30") == (1260, 510)
    assert parse_quiet_hours("") is None


def test_the_reference_is_up_to_date() -> None:
    """The reference pages say what the code says: `make docs` makes them."""
    pages = Path(__file__).parents[2] / "docs" / "reference"
    assert (pages / "settings.md").read_text() == reference.settings() + "\n"
    assert (pages / "metrics.md").read_text() == reference.metrics() + "\n"
    assert (pages / "promotions.schema.json").read_text() == reference.promotions() + "\n"
    assert (pages / "world.schema.json").read_text() == reference.world() + "\n"
    for name in Settings.model_fields:
        assert f"`NEARCAST_{name.upper()}`" in reference.settings()
