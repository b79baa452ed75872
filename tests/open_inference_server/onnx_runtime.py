"""What MLServer runs: an ONNX file, answering with its scores or with labels alone. Imported by MLServer only."""

import numpy as np
import onnxruntime
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]


class OnnxModel(MLModel):  # type: ignore[misc]
    """The outputs that `model-settings.json` states, of the images in the first input."""

    async def load(self) -> bool:
        """Opens the file that the settings name."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Scores [N, K] as FP32, or labels [N] as INT64, or both."""
        images = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (scores,) = self._session.run(None, {self._session.get_inputs()[0].name: images})
        answers = {"scores": scores, "labels": scores.argmax(axis=1)}
        asked = [output.name for output in payload.outputs or self.outputs]
        outputs = [NumpyCodec.encode_output(name, answers[name]) for name in asked]
        return InferenceResponse(model_name=self.name, outputs=outputs)
