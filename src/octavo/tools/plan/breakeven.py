"""Self-host or buy: from how many requests a day on one's own devices are cheaper than a price list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from octavo.core.errors import ConfigError
from octavo.tools.plan.predict import Prediction

MAX_FILE_BYTES = 1 << 20
HOURS, SECONDS = 24, 86_400

_Name = Annotated[str, Meta(min_length=1, max_length=120)]
_PerMillion = Annotated[float, Meta(ge=0, le=1e6)]


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of a price list; prices per million tokens."""

    name: _Name
    input: _PerMillion
    output: _PerMillion

    def per_request(self, prediction: Prediction) -> float:
        """What a request of the mix costs."""
        prompt, output = prediction.prompt_tokens, prediction.output_tokens
        return (prompt * self.input + output * self.output) / 1e6


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    offers: Annotated[tuple[Offer, ...], Meta(min_length=1, max_length=200)]
    device_price: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Per device and hour; `--device-price` wins."""
    currency: Annotated[str, Meta(max_length=12)] = ""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One offer against one's own devices, for one mix."""

    mix: str
    offer: str
    offer_per_request: float
    own_per_day: float
    """All devices, busy or not."""
    requests_per_day: float | None
    """From which on one's own are cheaper; None: the offer costs nothing."""
    tokens_per_day: float | None
    """Prompt and output of so many requests."""
    capacity_per_day: float
    """Requests that the devices can do."""
    is_cheaper_at_most: bool
    """Whether the point lies below the capacity: else buying is cheaper at any load that the devices can take."""


def read_prices(path: str) -> PriceList:
    """The price list in a YAML file.

    Raises:
        ConfigError: unreadable, too large, or not a price list.
    """
    # lazy: yaml is needed only here
    import yaml

    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"--break-even {path!r} is larger than {MAX_FILE_BYTES} bytes.", code="E-FILE-01"
            )
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        return msgspec.convert(loaded, PriceList)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--break-even {path!r}: {' '.join(str(error).split())}.", code="E-FILE-01"
        ) from error
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"--break-even {path!r}: {error}.",
            code="E-PLAN-04",
            fix="It has `offers:`, a list of rows with name, input and output (per million tokens); "
            "and may have device_price (per hour) and currency.",
        ) from error


def lines(
    prices: PriceList, predictions: tuple[Prediction, ...], *, num_devices: int, device_price: float
) -> tuple[Line, ...]:
    """Every offer against one's own devices, by mix."""
    own_per_day = HOURS * num_devices * device_price
    found = []
    for each in predictions:
        capacity = each.requests_per_s * SECONDS
        for offer in prices.offers:
            price = offer.per_request(each)
            requests = own_per_day / price if price else None
            tokens = each.prompt_tokens + each.output_tokens
            found.append(
                Line(
                    mix=each.mix,
                    offer=offer.name,
                    offer_per_request=price,
                    own_per_day=own_per_day,
                    requests_per_day=requests,
                    tokens_per_day=None if requests is None else requests * tokens,
                    capacity_per_day=capacity,
                    is_cheaper_at_most=requests is not None and requests <= capacity,
                )
            )
    return tuple(found)
