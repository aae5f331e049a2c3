# SPDX-License-Identifier: Apache-2.0
"""Llama 3.2 Vision with each image named by its own content, and text kept apart from images.

SGLang 0.5.23 serves the architecture; two of its methods are replaced here.

* It gives all images of a request one pad id, a hash of them together, so that a prefix tree
  matches all of them or none: SGLang's trees end the server on a prefix that ends between two
  images. Where the tree knows better (``images_apart``), every image token carries its own image's
  id, and requests that begin with the same image meet in the tree.
* In a prefill batch it marks which rows of text attend to images by adding up encoder lengths where
  the rows of the flattened batch follow each other by their new text. Requests without an image
  then go through cross layers (which for them attend to nothing, but whose MLP still adds to the
  stream) whenever a request with one shares their batch. Here rows are counted as they lie.

Upstream seam: both belong in ``models/mllama.py``.
"""

from array import array

import torch
from sglang.srt.managers.schedule_batch import MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.mllama import MllamaForConditionalGeneration as UpstreamMllama


class MllamaForConditionalGeneration(UpstreamMllama):
    """Llama 3.2 Vision. ``images_apart``: the server's prefix tree takes images one by one."""

    images_apart = False

    def pad_input_ids(self, input_ids: "array[int]", mm_inputs: MultimodalInputs) -> "array[int]":
        """``input_ids`` behind one id per image token, equal for equal images.

        Sets ``mm_inputs.num_image_tokens``. Pixel values are
        ``[1, images, tiles, channels, height, width]``.
        """
        if not self.images_apart:
            return super().pad_input_ids(input_ids, mm_inputs)
        padded = array("q")
        for item in mm_inputs.mm_items:
            _, num_images, num_tiles = item.feature.shape[:3]
            tokens = num_tiles * self.vision_model.num_patches
            for image in range(num_images):
                pad_value = item.pad_value if num_images == 1 else _pad_value(item, image)
                padded.extend(array("q", [pad_value]) * tokens)
        mm_inputs.num_image_tokens = len(padded)
        return padded + input_ids

    def get_full_text_row_masked_out_mask(self, forward_batch: ForwardBatch) -> torch.Tensor:
        """``[rows of text, 1]`` bool: whether the row belongs to a request with images."""
        has_images = forward_batch.encoder_lens != 0
        if not forward_batch.forward_mode.is_decode():
            has_images = torch.repeat_interleave(
                has_images,
                forward_batch.extend_seq_lens,
                output_size=sum(forward_batch.extend_seq_lens_cpu),
            )
        return has_images.reshape(-1, 1)


def _pad_value(item: MultimodalDataItem, image: int) -> int:
    """The pad id that SGLang would give one image of ``item`` if it came alone."""
    alone = MultimodalDataItem(modality=item.modality, feature=item.feature[:, image : image + 1])
    alone.set_pad_value()
    return int(alone.pad_value)


EntryClass = MllamaForConditionalGeneration
