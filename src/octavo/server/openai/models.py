"""GET /v1/models and /v1/models/{id}: what is served here."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from octavo.server.call import Call, json_response
from octavo.server.state import AppState


class Model(msgspec.Struct, kw_only=True):
    """One served name."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "octavo"
    root: str
    parent: str | None = None
    max_model_len: int
    """Longest prompt plus output, in tokens."""


class ModelList(msgspec.Struct, kw_only=True):
    """All served names."""

    object: str = "list"
    data: list[Model]


async def list_models(call: Call) -> Response:
    """All names under which the model answers; 503 while it does not."""
    names = call.state.served_names
    return json_response(ModelList(data=[_model(call.state, name) for name in names]))


async def get_model(call: Call) -> Response:
    """One of them."""
    name = call.state.check_model(str(call.scope["path_params"]["model"]))
    return json_response(_model(call.state, name))


def _model(state: AppState, name: str) -> Model:
    return Model(
        id=name,
        created=state.created,
        root=state.served_names[0],
        max_model_len=state.check_accepting().max_model_len,
    )
