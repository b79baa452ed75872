"""`random`: keyed noise, or the owner's images, as they come. A baseline."""

from intaglio.classifiers import Access, Classifier
from intaglio.seal.method import Request, SealMethod, Triggers
from intaglio.seal.starts import starting_levels
from intaglio.seal.surface import LEVELS


class RandomImages(SealMethod):
    """Images that were not searched for: what a check with ordinary test images would notice."""

    name = "random"
    requires = Access.SCORES

    def run(self, classifier: Classifier, request: Request) -> Triggers:
        levels = starting_levels(classifier, request, 2 * request.pairs)
        return Triggers(levels, classifier.predict(levels / LEVELS))
