"""Top-1 and top-5 of an image classifier."""

from collections import OrderedDict

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ClassificationEvaluator(DatasetEvaluator):
    """How often the class is the one of highest score, or among the five of highest, in percent; equal in any number of processes."""

    def reset(self) -> None:
        self._correct: dict[str, list[int]] = {}  # by image, so that one that two processes saw counts once

    def process(self, inputs, outputs) -> None:
        for given, found in zip(inputs, outputs):
            scores = found["scores"]
            # what is as high as the label's counts against it, and so does what is no number: equal scores have told nothing apart
            rank = int((~(scores < scores[given["label"]])).sum()) - 1
            self._correct[str(given["image_id"])] = [int(rank < 1), int(rank < 5)]

    def evaluate(self):
        every = comm.gather(self._correct)
        if not comm.is_main_process():
            return None
        seen = {image: correct for part in every for image, correct in part.items()}
        top1, top5 = (100 * sum(correct[i] for correct in seen.values()) / max(len(seen), 1) for i in range(2))
        return OrderedDict(classification={"top1": top1, "top5": top5})
