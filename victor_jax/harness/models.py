"""The classes that lmms-eval makes. Prompts, batches and decoding are in `asking` and `answering`."""

from typing import Any

import jax
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from loguru import logger

import victor_jax
from victor_jax.compile_cache import use_compile_cache
from victor_jax.errors import UserError
from victor_jax.harness import answering, asking
from victor_jax.harness.answering import Request

ARGUMENTS = ("pretrained", "compression", "dtype", "attention", "batch_size", "max_batch_size", "device")


class VictorJax(lmms):
    """Tasks of a text and its pictures: generation, multiple choice, log-likelihood."""

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        compression: str | None = None,  # in quotes; default: the one that the model was trained with
        dtype: str = "bfloat16",
        attention: str = "auto",
        batch_size: int | str = 1,  # these three come from lmms-eval's own flags
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        asking.check_known(unknown, ARGUMENTS)
        if pretrained is None:
            raise UserError("model_args lacks pretrained=DIR, the folder or the Hub's name of a model")
        asking.check_device(device, jax.default_backend())
        self.batch_size = asking.batch_size(batch_size, max_batch_size)
        use_compile_cache()
        compression = asking.unquoted(compression)
        self.vlm = victor_jax.load(str(pretrained), compression, dtype, attention=attention)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        asked = [self._gen_kwargs(request) for request in requests]
        dropped = {name: value for one in asked for name, value in asking.not_heeded(one).items()}
        if dropped:
            logger.warning(f"victor_jax does not heed {', '.join(f'{k}={v!r}' for k, v in dropped.items())}")
        how = [asking.decoding(one) for one in asked]
        return answering.generate(self.vlm, [self._request(one) for one in requests], how, self.batch_size)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The mean loss of each answer, and whether it is what the model says. For multiple choice lmms-eval takes the
        least, whatever its documentation says of log-probabilities. A plain pair would become a text (0.7.3,
        `unwrap_generation_output`), which the task cannot read."""
        asked, answers = [self._request(one) for one in requests], [self._answer(one) for one in requests]
        losses = answering.losses(self.vlm, asked, answers, self.batch_size)
        said = self._said(requests, asked, answers)
        pairs = [(loss, text == answer) for loss, text, answer in zip(losses, said, answers, strict=True)]
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("victor_jax answers one message: tasks of several rounds cannot be run")

    def _said(self, requests: list[Instance], asked: list[Request], answers: list[str]) -> list[str]:
        """What the model says by itself, asked once for all choices of a question."""
        first: dict[Any, int] = {}
        same = [first.setdefault(_question(request), number) for number, request in enumerate(requests)]
        longest = max(len(self.vlm.prompter.tokenizer(answer)["input_ids"]) for answer in answers) + 1
        how = [asking.Decoding(longest)] * len(first)
        said = answering.generate(self.vlm, [asked[number] for number in first.values()], how, self.batch_size)
        texts = dict(zip(first.values(), said, strict=True))
        return [texts[number] for number in same]

    def _answer(self, request: Instance) -> str:
        """Without the space that lmms-eval puts before it: the template has its own."""
        _, target, _, doc_id, task, split = request.args
        return (target if isinstance(target, str) else str(target(self.task_dict[task][split][doc_id]))).strip()

    def _request(self, request: Instance) -> Request:
        context, _, doc_to_visual, doc_id, task, split = request.args

        def read() -> answering.Prompt:
            pictures = list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())
            return asking.with_places(context, len(pictures)), pictures

        return Request(len(context), read)

    def _gen_kwargs(self, request: Instance) -> dict[str, Any]:
        return request.args[1]


class VictorJaxChat(VictorJax):
    """Tasks of messages. lmms-eval sends it generation alone."""

    is_simple = False

    def _request(self, request: Instance) -> Request:
        context, doc_to_messages, _, doc_id, task, split = request.args
        return Request(
            len(context), lambda: asking.from_messages(doc_to_messages(self.task_dict[task][split][doc_id]), task)
        )

    def _gen_kwargs(self, request: Instance) -> dict[str, Any]:
        return request.args[2]


def _question(request: Instance) -> tuple[Any, ...]:
    context, _, _, *where = request.args
    return (context, *where)
