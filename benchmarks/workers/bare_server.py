"""What HTTP alone costs in Python: an application that reads a body and answers a constant. Run by uvicorn."""

from typing import Any

_BODY = b'{"data":[{"index":0,"label":"LABEL_0","probs":[0.5,0.5],"num_classes":2}]}'
_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))],
}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send(dict(_HEAD))
    await send({"type": "http.response.body", "body": _BODY})
