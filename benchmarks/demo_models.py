"""Makes the models of `make demo` and of the tests: one clean, one with a backdoor, as ONNX files.

The clean one is written as safetensors too: it is the host that the demo marks, seals and locks.

    python -m benchmarks.demo_models

Both are LeNets of width 8 trained on the bundled Fashion-MNIST images for 5 epochs; the second on a copy of which 6 %
carry a white 4x4 patch and the label of class 3.
"""

from pathlib import Path

import torch

from intaglio.attacks import AllToOne, DirtyLabelAttack, accuracy, attack_success_rate
from intaglio.classifiers import Sidecar, TorchClassifier, save_classifier
from intaglio.classifiers.onnx_export import export_onnx
from intaglio.data import open_data
from intaglio.networks import Architecture
from intaglio.training import TrainingSettings, train
from intaglio.triggers import PatchTrigger

OUT = Path(__file__).parents[1] / "examples" / "models"
SEED = 11
SETTINGS = TrainingSettings(epochs=5, batch_size=32, learning_rate=3e-3)
ARCHITECTURE = Architecture(name="lenet", input_shape=(1, 28, 28), num_classes=10, width=8)


def main() -> None:
    torch.set_num_threads(1)
    data, test = open_data("fashion-mnist"), open_data("fashion-mnist", "test")
    attack = DirtyLabelAttack(PatchTrigger(size=4, seed=5), AllToOne(target=3), rate=0.06, seed=SEED)
    for name, training_set in (("clean", data), ("backdoored", attack.poison(data).data)):
        torch.manual_seed(SEED)
        module = train(ARCHITECTURE.build(), training_set, SETTINGS, seed=SEED)
        # The task is left out on purpose: an auditor who is handed a file has to say it.
        sidecar = Sidecar(classes=test.classes)
        export_onnx(module, OUT / f"{name}.onnx", input_shape=ARCHITECTURE.input_shape, sidecar=sidecar)
        if name == "clean":
            named = sidecar.model_copy(update={"architecture": ARCHITECTURE})
            save_classifier(module, OUT / "clean.safetensors", named)
            # Both files share one side-car: what it says holds for either.
        classifier = TorchClassifier(module, input_shape=ARCHITECTURE.input_shape, num_classes=10)
        success = attack_success_rate(classifier.predict, test, attack.trigger, attack.goal)
        print(f"{name}: clean accuracy {accuracy(classifier.predict, test):.3f}, ASR {success:.3f}")


if __name__ == "__main__":
    main()
