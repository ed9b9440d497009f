"""The server's HTTP API as pydantic models: what the CLI, the agent and the server agree on.

Paths are under `/v1`. Operators send `Authorization: Bearer <API token>`; devices sign requests with
their key (see `wherry.device_auth`). Errors are `{"error": {"code", "thing", "reason", "fix"}}`.

One module a resource; import from there.
"""
