"""Tokens of a whole published text, for a model in LLaVA's template: spaces and breaks that no template makes.

`mllmu.py` gives such a text beside a prompt where `turn-spacing` is taken as published. Other templates have no such
spaces to give back, so there the prompt stands as it is. Apart from that file for what it imports: models.
"""

from ...data.example import IMAGE_MARKER, Example
from ...models.encode import Encoded, Encoder


def encode_published(encoder: Encoder, prompt: Example, text: str) -> Encoded:
    """Encode a prompt by its whole published text where the model is asked in LLaVA's template, else as usual.

    Raises:
        DataError: the text is longer than the model's context.
    """
    rendering = encoder.rendering
    if rendering.template != "llava" or rendering.system_prompt is not None:
        return encoder.encode_prompt(prompt)
    ids = encoder.tokenizer(text.replace(IMAGE_MARKER, encoder.image_token))["input_ids"]
    return encoder.assemble(prompt, tuple(ids), (), prompt.images)
