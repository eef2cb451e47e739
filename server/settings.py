"""Settings: environment variables `NEARCAST_<NAME>`, or a TOML file named by `NEARCAST_CONFIG`.

The environment wins over the file. An unknown key in either is a start-up failure: a typo must not silently leave a
default in force. `docs/reference/settings.md` is made from this module (`nearcast reference settings`).
"""

import os
import re
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from pydantic import Field, PlainValidator, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from nearcast.errors import ConfigurationError
from nearcast.world import Cap
from offers.wording import explained

PREFIX = "NEARCAST_"
CONFIG_VARIABLE = PREFIX + "CONFIG"

Role = Literal["api", "engine", "dispatcher", "gateway"]
KeyRole = Literal["intake", "pos", "admin", "staff", "metrics", "reports"]


def read_caps(value: object) -> list[Cap]:
    """Caps as they stand in a promotion. Raises `ValueError` that names the field."""
    try:
        return msgspec.convert(value, list[Cap])
    except msgspec.ValidationError as error:
        where, detail = explained(str(error), list[Cap])
        raise ValueError(f"{where}: {detail}" if where else detail) from None


class Settings(BaseSettings):
    """Everything that can be set, with its unit, default and reason."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    data_dir: Path = Field(
        Path("nearcast-data"), description="Where the embedded Valkey keeps its files and generated secrets (0600)."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="An outside Valkey or Redis, `redis://...` or `rediss://...`; empty: a private one is started.",
    )
    kafka: str | None = Field(
        None, description="Kafka bootstrap servers, `host:port,host:port`; empty: Valkey Streams are the event log."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to Kafka."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="SASL mechanism, where the protocol asks for one."
    )
    kafka_username: str | None = Field(None, description="SASL user name.")
    kafka_password: SecretStr | None = Field(None, description="SASL password.")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the brokers' certificates."
    )
    kafka_idempotent: bool = Field(
        True,
        description="Off for brokers without idempotent producers; events written twice are dropped by their id.",
    )
    kafka_replication: int = Field(
        1,
        ge=1,
        le=32767,
        description="Replicas of the topics that nearcast creates; 3 on a cluster that must not lose any.",
    )
    kafka_create_topics: bool = Field(
        True, description="Off where topics are made by somebody else: then a missing one stops the start."
    )
    promotions_topic: bool = Field(
        False,
        description="Whether what is sent to customers, and what is taken back, also goes to the topic "
        "`customers.promotions`, for other systems to read. The same in every process.",
    )
    partitions: int = Field(
        4, ge=1, le=1024, description="Partitions of every customer topic. Can't be changed once there is data."
    )
    roles: list[Role] = Field(
        list(get_args(Role)), min_length=1, description="What this process does; several processes can share the work."
    )

    api_host: str = Field(
        "127.0.0.1", description="Address the HTTP API listens on; loopback unless you say otherwise."
    )
    api_port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP API.")
    gateway_host: str = Field("127.0.0.1", description="Address the WebSocket gateway listens on.")
    gateway_port: int = Field(8081, ge=0, le=65535, description="Port of the WebSocket gateway.")
    gateway_drain_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds over which a gateway that stops sends its clients elsewhere: they come back at once, so "
        "all at the same time would be a storm there.",
    )
    max_connections: int | None = Field(
        None,
        ge=0,
        description="Connections to one gateway in all; more are refused (HTTP 503) while it goes on serving these. 0: "
        "any number. Empty: what the process's limit of open files leaves, nine tenths of it less 100.",
    )
    connections_per_address: int = Field(
        1_000,
        ge=0,
        description="Connections to one gateway from one address (of IPv6: one /64), a shop's Wi-Fi or a carrier's NAT "
        "for instance; never more than half of NEARCAST_MAX_CONNECTIONS. 0: any number.",
    )
    trusted_proxies: list[str] = Field(
        [],
        description="Addresses or networks of the proxies in front of the gateway, whose X-Forwarded-For is believed. "
        "A proxy that is not named counts as one address, with `NEARCAST_CONNECTIONS_PER_ADDRESS` for all its clients.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port for /metrics alone, for processes without the api role; asks for no key. Empty: none.",
    )
    public_url: str = Field(
        "",
        description="URL under which people reach the HTTP API; stands in SMS and e-mail links. Empty: host and port.",
    )
    allowed_origins: list[str] = Field(
        [],
        description="Exact origins that browsers may connect to the gateway from. Apps send no Origin and need none.",
    )
    api_keys: dict[KeyRole, SecretStr] = Field(
        {},
        description="One key per role; needed with an outside Redis, generated in the data directory otherwise. "
        "With a key for `metrics`, /metrics asks for it.",
    )
    token_secret: SecretStr | None = Field(None, description="Signs device and staff tokens (HS256), 32 bytes or more.")
    coupon_secret: SecretStr | None = Field(None, description="Makes coupon codes unguessable, 32 bytes or more.")
    link_secret: SecretStr | None = Field(None, description="Signs the links in SMS and e-mail, 32 bytes or more.")

    model_dir: Path | None = Field(
        None,
        description="Folder of a model, or of one folder for each kind of model, instead of those that are shipped; "
        "what `nearcast models activate` chose goes before both.",
    )
    model_budget_ms: float = Field(
        50.0,
        gt=0,
        le=60_000,
        description="CPU time that scoring one batch may take; then it gets the fallback score. A model that takes "
        "longer for 64 rows is not loaded.",
    )
    model_pause_s: float = Field(
        60.0, gt=0, description="Seconds for which a model that failed three times in a row is left alone."
    )
    model_fallback_score: float = Field(
        0.05,
        ge=0,
        le=1,
        description="The probability that stands in where there is no model, or one that doesn't state its base rate.",
    )
    world_files: list[Path] = Field(
        [], description="World files (YAML or JSON; fences also as .geojson) to load at start, as one world."
    )
    batch_events: int = Field(
        2_000, ge=1, le=10_000, description="Most events in one engine batch; bounds how long heartbeats must wait."
    )
    cached_customers: int = Field(
        200_000, ge=1_000, description="Customers whose records an engine keeps in memory, about 1 KB each."
    )
    instance_id: str = Field(
        "",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="This engine's own name, the same after a restart and no other's: its partitions then wait for it "
        "while its session lasts (Kafka 30 s, Valkey 10 s), and no other engine is disturbed. Empty: a restart, and a "
        "stop, hands them over.",
    )
    stall_after_s: float = Field(
        60.0,
        ge=1.0,
        description="Seconds without progress, while records wait and log and store answer, after which an engine's "
        "connection to the log is made anew; after the second time in a row that helps nothing, the process ends.",
    )
    dead_letters_limit: int = Field(
        10_000,
        ge=1,
        description="Dead letters that a partition may hold. An engine that would need more stops, and says so, rather "
        "than discard a stream.",
    )
    footfall_k: int = Field(
        5,
        ge=1,
        le=1_000,
        description="Footfall counts below this are withheld, and others rounded down to a multiple of it.",
    )
    footfall_days: int = Field(
        400, ge=1, le=3_660, description="Days for which the hourly footfall is kept; counts only, nobody's id."
    )
    late_after_s: float = Field(
        3_600,
        gt=0,
        description="An event older than this when it arrives is late: fixes and cart changes are dropped (and "
        "counted), actions cause no message, everything else is folded as ever.",
    )
    cart_abandoned_after_s: float = Field(
        1_800, gt=0, description="Seconds an online cart must lie untouched to count as abandoned."
    )
    offers_per_day: int = Field(
        6, ge=1, description="Most offers to one customer in any 24 hours, all promotions together."
    )
    caps: Annotated[list[Cap], PlainValidator(read_caps)] = Field(
        [],
        description="More limits over all promotions, besides that one: a list of caps as promotions have them, "
        '`[{"count": 2, "period": "week", "channels": ["sms"]}]`. With `tags`, only promotions with one of the tags '
        "count and are stopped.",
    )
    personal_prices: bool = Field(
        False,
        description="Whether promotions may make a price for one customer from what they paid before "
        "(`what.price_rule`). Off: such promotions are never offered.",
    )
    coupon_unknown_codes: int = Field(
        20,
        ge=0,
        description="Coupon codes that don't exist, which one API key may ask for at one store in "
        "`NEARCAST_COUPON_UNKNOWN_WINDOW_S`; then it hears of no code until the window is over (429). 0: any number.",
    )
    coupon_unknown_window_s: float = Field(
        600.0, gt=0, le=86_400, description="Seconds, for the above, from the first such code on."
    )
    coupons_applied_per_hour: int = Field(
        30, ge=0, description="Coupons that one customer may apply in any hour. 0: any number."
    )
    coupons_redeemed_per_hour: int = Field(
        20, ge=0, description="Coupons that one customer may redeem in any hour. 0: any number."
    )
    coupon_km_per_h: float = Field(
        300.0,
        ge=0,
        description="A customer's coupon is refused at a store that they could not have reached at this speed since "
        "they redeemed another one elsewhere. 0: it is not looked at.",
    )
    coupon_keys: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        ["1"],
        min_length=1,
        max_length=16,
        description="Names of the keys that sign coupons, each derived from the coupon secret: the first one signs, "
        "all of them are published and believed. To change keys put a new name first; take an old one away when the "
        "coupons that it signed are over, or at once if its key got known.",
    )
    max_doubt: float = Field(
        0.5,
        ge=0,
        le=1,
        description="No offer follows from a position that is more likely than this to be made up (0 to 1; 1: all do).",
    )
    annoyance_cents: float = Field(
        0.001,
        ge=0,
        le=1_000_000,
        description="What an offer costs in goodwill, in cents, after one that was ignored; doubles with every further "
        "one in a row. An offer that is expected to bring less is not made. 0: none ever costs any.",
    )
    annoyance_window_s: float = Field(
        604_800, ge=0, le=31_536_000, description="Seconds after which an ignored offer is forgotten, for the above."
    )
    exploration: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the decisions in which chance chooses among what passed every gate, and nothing; what is "
        "never tried, no model learns of. 0: none.",
    )
    holdout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the customers who get no offers at all, always the same ones, so that the effect of "
        "offers can be measured. 0: nobody.",
    )
    holdout_salt: str = Field(
        "", max_length=100, description="Chooses who is held out; another text holds other customers out."
    )
    channel_order: Literal["promotion", "learned"] = Field(
        "promotion",
        description="Which of its channels an offer tries first: the one that the promotion names first, or (learned) "
        "the one that the customer will most likely react to, by the model of kind `channel`.",
    )
    quiet_hours: str = Field(
        "21:00-08:00", description="No offers in this window of the customer's local time; empty: none are quiet."
    )

    sms_url: str = Field("https://api.twilio.com", description="Base URL of an SMS provider that speaks Twilio's API.")
    sms_account: str | None = Field(None, description="Account SID; empty: no SMS.")
    sms_auth_token: SecretStr | None = Field(None, description="The account's auth token; also verifies callbacks.")
    sms_from: str | None = Field(None, description="Sender number, E.164.")
    smtp_host: str | None = Field(None, description="Mail server; empty: no e-mail.")
    smtp_port: int = Field(587, ge=1, le=65535, description="Port of the mail server.")
    smtp_security: Literal["none", "starttls", "tls"] = Field(
        "starttls", description="Encryption of the mail connection; `none` only makes sense on loopback."
    )
    smtp_username: str | None = Field(None, description="Login, where the mail server wants one.")
    smtp_password: SecretStr | None = Field(None, description="Password for the login.")
    mail_from: str | None = Field(None, description="Sender address of e-mails.")

    demo: bool = Field(False, description="Serves the demo page and hands out its tokens; loopback only.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much is logged.")

    @field_validator("quiet_hours")
    @classmethod
    def _quiet_hours(cls, value: str) -> str:
        window = parse_quiet_hours(value)
        if window is not None and window[0] == window[1]:
            raise ValueError("a window that starts when it ends is empty; leave the setting empty instead")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ip_network(network)
        return value

    @field_validator("token_secret", "coupon_secret", "link_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < 32:
            raise ValueError("needs 32 bytes or more")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_VARIABLE)
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return (init_settings, env_settings, *toml)


def parse_quiet_hours(text: str) -> tuple[int, int] | None:
    """ "HH:MM-HH:MM" as minutes since midnight, or None for an empty text."""
    if not text:
        return None
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
    if found is None:
        raise ValueError(f"must look like 21:00-08:00, not {text!r}")
    start_hour, start_minute, end_hour, end_minute = (int(part) for part in found.groups())
    return start_hour * 60 + start_minute, end_hour * 60 + end_minute


def load(**overrides: Any) -> Settings:
    """The settings in force. Raises `ConfigurationError` naming each setting that is wrong or unknown."""
    _refuse_unknown_variables()
    file = os.environ.get(CONFIG_VARIABLE)
    if file and not Path(file).is_file():
        raise ConfigurationError(f"{CONFIG_VARIABLE} names {file}, which is not a file")
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(problem) for problem in error.errors())) from None
    except SettingsError as error:
        named = re.search(r'field "(\w+)"', str(error))
        if named is None:
            raise ConfigurationError(f"the settings can't be read: {error}") from None
        raise ConfigurationError(f"{PREFIX}{named[1].upper()}: is not JSON: {error.__cause__ or error}") from None
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"the settings can't be read: {error}") from None
    _check_together(settings)
    return settings


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    # Names that test runs use; they configure the tests, not the server.
    unknown = [
        name
        for name in os.environ
        if name.startswith(PREFIX) and name not in known and not name.startswith("NEARCAST_TEST_")
    ]
    if unknown:
        raise ConfigurationError(
            f"unknown settings: {', '.join(sorted(unknown))}; `nearcast reference settings` lists all"
        )


def _explain(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name}"
    return f"{PREFIX}{name.upper()}: {problem['msg'].removeprefix('Value error, ')}"


def _check_together(settings: Settings) -> None:
    if settings.redis_url is not None:
        missing = [name for name in ("token_secret", "coupon_secret", "link_secret") if getattr(settings, name) is None]
        if not settings.api_keys:
            missing.append("api_keys")
        if missing:
            names = ", ".join(PREFIX + name.upper() for name in missing)
            raise ConfigurationError(
                f"with NEARCAST_REDIS_URL set, these must be set too (the same everywhere): {names}"
            )
    if settings.demo and not all(host in ("127.0.0.1", "::1") for host in (settings.api_host, settings.gateway_host)):
        raise ConfigurationError("NEARCAST_DEMO hands out tokens freely, so it works on 127.0.0.1 only")
    for channel, needed in {"sms_account": ("sms_auth_token", "sms_from"), "smtp_host": ("mail_from",)}.items():
        if getattr(settings, channel):
            for name in needed:
                if not getattr(settings, name):
                    raise ConfigurationError(f"{PREFIX}{channel.upper()} needs {PREFIX}{name.upper()}")
