"""Who calls: an operator with an API token, or a device with a signed request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer

from wherry.device_auth import SCHEME
from wherry_server.api.errors import Unauthenticated
from wherry_server.services.access import Operator, check_token
from wherry_server.services.context import Context
from wherry_server.services.enrolment import Caller, authenticate

# Only for the OpenAPI document: the answer to a wrong token is ours.
_bearer = HTTPBearer(auto_error=False, description="API token, from `wherry-server token create NAME --data DIR`")


def get_context(request: Request) -> Context:
    """The server's parts."""
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(get_context)]


async def _operator(request: Request, context: ContextDep, _bearer: Annotated[object, Depends(_bearer)]) -> Operator:
    """The operator whose token came with the request."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        operator = await run_in_threadpool(check_token, context, secret.strip())
        if operator is not None:
            return operator
    raise Unauthenticated("request", "has no valid API token", "Send `Authorization: Bearer TOKEN`")


async def _device(request: Request, context: ContextDep) -> Caller:
    """The device that signed the request."""
    header = request.headers.get("authorization", "")
    if not header.startswith(SCHEME + " "):
        raise Unauthenticated("request", "is not signed by a device", "Send `Authorization: WherryDevice …`")
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope.get("raw_path", b"").decode("latin-1") + (f"?{query}" if query else "")
    body = await request.body()
    return await run_in_threadpool(authenticate, context, header, request.method, path, body)


async def _operator_or_device(request: Request, context: ContextDep) -> Operator | Caller:
    if request.headers.get("authorization", "").startswith(SCHEME + " "):
        return await _device(request, context)
    return await _operator(request, context, None)


async def _acting(operator: Annotated[Operator, Depends(_operator)], context: ContextDep) -> Context:
    return context.acting_as(operator.name)


OperatorDep = Annotated[Operator, Depends(_operator)]
ActingDep = Annotated[Context, Depends(_acting)]
"""The server's parts for an operator, whose name the audit trail shows; a route that takes it needs a token."""
DeviceDep = Annotated[Caller, Depends(_device)]
AnyoneDep = Annotated[Operator | Caller, Depends(_operator_or_device)]
NeedsOperator = Depends(_operator)
