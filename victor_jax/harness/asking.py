"""What lmms-eval's tasks and its command line say -> prompts, decoding and settings of ours. Needs no lmms-eval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from victor_jax.data.labels import IMAGE_TEXT
from victor_jax.errors import UserError
from victor_jax.inference.sampling import GREEDY, Sampling
from victor_jax.limits import check_whole

MAX_NEW_TOKENS = 1024  # where a task gives none, as in lmms-eval's own LLaVA
BATCH_SIZE = 16  # of --batch_size=auto without --max_batch_size
# lmms-eval writes its separator of examples there when a task names no stop string: it would cut off the second
# paragraph of a long answer.
NO_STOP = "\n\n"
HEEDED = ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "until")
HARMLESS = {"num_beams": (1, None), "repetition_penalty": (1, None)}  # at these values
PLATFORMS = {"cuda": "gpu"}  # torch's name -> jax's


@dataclass(frozen=True)
class Decoding:
    max_new_tokens: int = MAX_NEW_TOKENS
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


def decoding(gen_kwargs: Mapping[str, Any]) -> Decoding:
    """Of one request. What is None there is as good as absent."""
    asked = {name: value for name, value in gen_kwargs.items() if value is not None}
    until = asked.get("until", ())
    stop = tuple(text for text in ((until,) if isinstance(until, str) else until) if text and text != NO_STOP)
    limit, temperature = asked.get("max_new_tokens", MAX_NEW_TOKENS), float(asked.get("temperature", 0))
    if temperature == 0 or asked.get("do_sample") is False:
        return Decoding(limit, GREEDY, stop)
    return Decoding(limit, Sampling(temperature, float(asked.get("top_p", 1)), int(asked.get("top_k", 0))), stop)


def not_heeded(gen_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a task asks for and does not get."""
    return {
        name: value for name, value in gen_kwargs.items() if name not in HEEDED and value not in HARMLESS.get(name, ())
    }


def from_messages(messages: Sequence[Mapping[str, Any]], task: str) -> tuple[str, list[Any]]:
    """The text and the pictures of one user message. A picture that stands between texts keeps its place."""
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise UserError(
            f"the task {task} sends {', '.join(message['role'] for message in messages)}: victor_jax answers one "
            "message of a user"
        )
    content = messages[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if strange := [part["type"] for part in parts if part["type"] not in ("text", "image")]:
        raise UserError(f"the task {task} sends {strange[0]}: victor_jax reads text and images")
    pictures = [part["url"] for part in parts if part["type"] == "image"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    leading = all(part["type"] == "image" for part in parts[: len(pictures)])
    if leading or any(IMAGE_TEXT in text for text in texts):
        return "".join(texts), pictures
    return "".join(IMAGE_TEXT if part["type"] == "image" else part["text"] for part in parts), pictures


def with_places(text: str, pictures: int) -> str:
    """As LLaVA's class in lmms-eval does it: pictures without a place in the text come first."""
    if not pictures or IMAGE_TEXT in text:
        return text
    return f"{' '.join([IMAGE_TEXT] * pictures)}\n{text}"


def batch_size(given: int | str, most: int | None) -> int:
    """lmms-eval passes on the text of its command line: a number, or `auto`."""
    text = str(given)
    if text.startswith("auto"):
        return most or BATCH_SIZE
    size = int(text) if text.isdecimal() else given
    check_whole("batch_size", size)
    return int(size)


def check_device(device: str | None, platform: str) -> None:
    """jax chooses before anybody asks: a device is only compared with its choice."""
    kind = "" if device is None else str(device).partition(":")[0]
    if kind and PLATFORMS.get(kind, kind) != platform:
        raise UserError(
            f"device={device}, but jax runs on {platform}: leave the device out, or choose with JAX_PLATFORMS"
        )


def check_known(unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown:
        name, value = next(iter(unknown.items()))
        raise UserError(
            f"model_args has {name}={value!r}: known are {', '.join(known)}; a compression with commas stands in "
            "quotes, compression='victor:registers=8,layer=3'"
        )


def unquoted(compression: str | None) -> str | None:
    """lmms-eval splits its model_args at commas outside of quotes, and leaves the quotes there."""
    return None if compression is None else str(compression).strip("'\"")
