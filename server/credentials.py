"""The secrets in force: from the settings, or made at first start and kept in the data directory (mode 0600)."""

import os
import secrets
from pathlib import Path

import msgspec

from nearcast.errors import ConfigurationError
from server.settings import KeyRole, Settings

FILE = "secrets.json"
_ROLES: tuple[KeyRole, ...] = ("intake", "pos", "admin", "staff")


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Never logged, never part of an error: `repr` shows nothing."""

    api_keys: dict[str, str]
    token: str
    coupon: str
    link: str

    def __repr__(self) -> str:
        return "Secrets(...)"


def secrets_for(settings: Settings) -> Secrets:
    """What the settings say, completed from the data directory where they say nothing."""
    configured = {
        name: value.get_secret_value()
        for name, value in (
            ("token", settings.token_secret),
            ("coupon", settings.coupon_secret),
            ("link", settings.link_secret),
        )
        if value is not None
    }
    keys: dict[str, str] = {role: key.get_secret_value() for role, key in settings.api_keys.items()}
    if keys and len(configured) == 3:
        return Secrets(api_keys=keys, **configured)
    kept = _kept(settings.data_dir)
    return Secrets(
        api_keys=keys or kept.api_keys,
        token=configured.get("token", kept.token),
        coupon=configured.get("coupon", kept.coupon),
        link=configured.get("link", kept.link),
    )


def _kept(data_dir: Path) -> Secrets:
    path = data_dir / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"the secrets in {path} can't be read: {error}") from None
    made = Secrets(
        api_keys={role: secrets.token_urlsafe(24) for role in _ROLES},
        token=secrets.token_urlsafe(32),
        coupon=secrets.token_urlsafe(32),
        link=secrets.token_urlsafe(32),
    )
    try:
        _write(data_dir, path, made)
    except OSError as error:
        raise ConfigurationError(f"NEARCAST_DATA_DIR: {data_dir} can't be used: {error}") from None
    return made


def _write(data_dir: Path, path: Path, made: Secrets) -> None:
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written beside and renamed, so that a crash leaves no half file; created 0600, never widened afterwards.
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(made)))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
