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
from victor_jax.ops.attention import Choice

ARGUMENTS = ("pretrained", "compression", "dtype", "attention", "batch_size", "max_batch_size", "device")


class VictorJax(lmms):
    """Tasks of a text and its pictures: generation, multiple choice, log-likelihood."""

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        compression: str | None = None,  # in quotes; default: the one that the model was trained with
        dtype: str = "bfloat16",
        attention: Choice = "auto",
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
        """The mean loss of each answer, and whether the model would say it. For multiple choice lmms-eval takes the
        least, whatever its documentation says of log-probabilities. A plain pair would become a text (0.7.3,
        `unwrap_generation_output`), which the task cannot read."""
        asked, answers = [self._request(one) for one in requests], [self._answer(one) for one in requests]
        losses = answering.losses(self.vlm, asked, answers, self.batch_size)
        questions = [(one.document, request.args[0]) for one, request in zip(asked, requests, strict=True)]
        different = dict(zip(questions, asked, strict=True))  # choices share their question
        longest = max(len(self.vlm.prompter.tokenizer(answer)["input_ids"]) for answer in answers) + 1
        how = [asking.Decoding(longest)] * len(different)
        texts = answering.generate(self.vlm, list(different.values()), how, self.batch_size)
        said = dict(zip(different, texts, strict=True))
        pairs = [
            (loss, said[question] == answer) for loss, question, answer in zip(losses, questions, answers, strict=True)
        ]
        return [GenerationResult(pair) for pair in pairs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise UserError("victor_jax answers one message: tasks of several rounds cannot be run")

    def _answer(self, request: Instance) -> str:
        """Without the space that lmms-eval puts before it: the template has its own."""
        _, target, _, doc_id, task, split = request.args
        return (target if isinstance(target, str) else str(target(self.task_dict[task][split][doc_id]))).strip()

    def _request(self, request: Instance) -> Request:
        context, _, doc_to_visual, doc_id, task, split = request.args

        def read() -> tuple[str, list[Any]]:
            return context, list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())

        return Request((task, split, doc_id), len(context), read)

    def _gen_kwargs(self, request: Instance) -> dict[str, Any]:
        return request.args[1]


class VictorJaxChat(VictorJax):
    """Tasks of messages. lmms-eval sends it generation alone."""

    is_simple = False

    def _request(self, request: Instance) -> Request:
        context, doc_to_messages, _, doc_id, task, split = request.args

        def read() -> tuple[str, list[Any]]:
            return asking.from_messages(doc_to_messages(self.task_dict[task][split][doc_id]), task)

        return Request((task, split, doc_id), len(context), read)

    def _gen_kwargs(self, request: Instance) -> dict[str, Any]:
        return request.args[2]
