"""S-FLCKR: landscapes from Flickr and Reddit, segmented by DeepLab v2 into COCO-Stuff's 182 labels.

The images cannot be distributed; `SegmentationBase` reads one's own collection.
"""

from __future__ import annotations

from taming.data.segmentation import SegmentationBase, SegmentationExamples

__all__ = ["Examples", "SegmentationBase"]


class Examples(SegmentationExamples):
    """`data/sflckr_examples.txt`: 182 labels."""

    name = "sflckr"
    labels_and_shift = (182, False)
