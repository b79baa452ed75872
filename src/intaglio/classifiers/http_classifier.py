"""A model behind an HTTP address as a classifier: an Open Inference Protocol server, or any JSON API by a mapping."""

from pathlib import Path
from typing import Unpack

from torch import Tensor

from intaglio.classifiers.base import Classifier, Options
from intaglio.classifiers.http_address import checked_address
from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.classifiers.http_dialect import Dialect
from intaglio.classifiers.http_json_api import JsonApi
from intaglio.classifiers.http_mapping import HttpMapping, filled_headers, read_mapping
from intaglio.classifiers.http_open_inference import OpenInference, model_address
from intaglio.classifiers.http_transcript import Transcript, image_digest
from intaglio.classifiers.http_transport import Reply, Transport
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ClassifierError, RemoteError


class HttpClassifier(Classifier):
    """Asks a remote model. Labels alone make its access LABELS, scores make it SCORES.

    Without a mapping that says otherwise, `url` is `http(s)://host:port/v2/models/NAME`, or with `/versions/V`, of an
    Open Inference Protocol server (KServe, Triton, MLServer, OpenVINO Model Server): its metadata are read at once,
    but no image is sent before the first question. Any other JSON API is described by a small YAML file: see
    `HttpMapping` for its form, an example, and how a token reaches the server without being written down.

    It is asked with the manners and limits of `Conduct`: time-outs, retries with growing pauses, requests a second, a
    budget of images (`max_queries`; a question that would go beyond it is refused before any of it is sent), and a
    limit on answers. TLS is verified, and redirects never lead to another host; the images are sent again after one,
    which counts. What fills up a fixed batch (its last image, repeated) doesn't count. The environment's proxies are
    used. Every request is recorded in `transcript`; `intaglio.evidence.transcript` signs it.

    Args:
        url: the address; user names, passwords and tokens don't belong into it.
        input_shape, num_classes: needed where the server doesn't state them.
        mapping: an `HttpMapping` or its YAML file.
        output: the protocol's output to read, where there are several.
        conduct: manners and limits (default: the mapping's).
        clock: what time it is.
        transcript: where requests are recorded (default: a new one).

    Raises:
        ModelError: an address, mapping or shape that can't be used.
        RemoteError: a server that can't be reached, hangs, refuses, redirects elsewhere, answers garbage, with another
            class count, or too much; also from `predict` and `scores`.
        ClassifierError: the budget is spent, or an option is unknown.
    """

    def __init__(
        self,
        url: str,
        *,
        input_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        mapping: HttpMapping | Path | str | None = None,
        output: str | None = None,
        conduct: Conduct | None = None,
        clock: Clock | None = None,
        transcript: Transcript | None = None,
        **options: Unpack[Options],
    ) -> None:
        if unknown := options.keys() - Options.__annotations__.keys():  # a budget that is passed over costs money
            raise ClassifierError(f"unknown option '{min(unknown)}': limits go into conduct=Conduct(...)")
        url = checked_address(url)
        described = mapping if isinstance(mapping, HttpMapping) else read_mapping(mapping) if mapping else HttpMapping()
        self.transcript = Transcript() if transcript is None else transcript
        self._conduct = described.conduct if conduct is None else conduct
        self._sent = 0
        self._digests: tuple[str, ...] = ()
        address = model_address(url) if described.request is None else url
        headers, secrets = filled_headers(described.headers)
        self._transport = Transport(
            url, conduct=self._conduct, clock=clock or Clock(), headers=headers, secrets=secrets
        )
        self._dialect: Dialect
        preprocessing = options.get("preprocessing", Preprocessing())
        if described.request is None:
            metadata = self._transport.ask("GET", address, failed=self.transcript.record)
            self.transcript.record(metadata)
            try:
                self._dialect = OpenInference(
                    address,
                    metadata.body or b"",
                    input_shape=input_shape,
                    num_classes=num_classes,
                    preprocessing=preprocessing,
                    classes=tuple(options.get("classes", ())),
                    output=output,
                )
            except RemoteError as error:
                raise RemoteError(self._transport.clean(str(error))) from error
        else:
            self._dialect = JsonApi(
                url, described, input_shape=input_shape, num_classes=num_classes, preprocessing=preprocessing
            )
        if not options.get("classes") and self._dialect.classes:
            options["classes"] = self._dialect.classes
        if self._dialect.fixed_batch is not None:
            options["fixed_batch"] = self._dialect.fixed_batch
        options["batch_size"] = min(options.get("batch_size") or self._dialect.batch_size, self._dialect.batch_size)
        options.setdefault("source", address)
        super().__init__(
            input_shape=self._dialect.input_shape,
            num_classes=self._dialect.num_classes,
            access=self._dialect.access,
            format=self._dialect.format,
            **options,
        )

    @property
    def images_sent(self) -> int:
        """Images sent so far, repeated ones included: what counts against the budget, whatever is reset.

        After redirects and failures the images are sent again, and counted again. Copies of the last image, which fill
        up a batch of fixed size, are not counted: they ask nothing new, and the server takes no smaller batch.
        """
        return self._sent

    def _ask(self, images: Tensor) -> Tensor:
        self._check_images(images)
        self._require_budget(len(images))  # before the first batch: half an answer is worth nothing
        return super()._ask(images)

    def _answer(self, batch: Tensor) -> Tensor:
        self._digests = tuple(image_digest(image) for image in batch)
        return super()._answer(batch)

    def _forward(self, batch: Tensor) -> Tensor:
        asked = len(self._digests)  # fewer than the batch where it was padded
        reply = self._transport.ask(
            "POST", self._dialect.url, self._dialect.request(batch), before=self._spend, failed=self._record_failure
        )
        try:
            answer = self._dialect.answer(reply.body or b"", len(batch))
        except RemoteError as error:
            problem = self._transport.clean(str(error))
            self.transcript.record(reply, self._digests, problem=problem)
            raise RemoteError(f"{self.source}: {problem}") from error
        self.transcript.record(reply, self._digests, answer[:asked])
        return answer

    def _spend(self) -> None:
        self._require_budget(len(self._digests))
        self._sent += len(self._digests)

    def _record_failure(self, reply: Reply) -> None:
        self.transcript.record(reply, self._digests)

    def _require_budget(self, count: int) -> None:
        budget = self._conduct.max_queries
        if budget is not None and self._sent + count > budget:
            raise ClassifierError(
                f"{self.source}: {count} more images would exceed the budget: {self._sent} of max_queries={budget} are "
                "spent; ask less, or allow more"
            )
